"""Where the ranks are: which of them share a node and its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plait.comm.communicator import Communicator

if TYPE_CHECKING:
    from plait.comm.memory import NodeMemory


@dataclass(frozen=True)
class Topology:
    """node: a number for this rank's node; place: its index there, in `memory` (None: not shared).

    choose picks the transport for the ranks of a split.
    """

    node: int
    place: int
    memory: NodeMemory | None
    choose: Callable[[Communicator, Topology], Communicator]

    def connect(self, mpi: Communicator | None) -> Communicator | None:
        """The communicator for the ranks of `mpi`, which all call this."""
        return None if mpi is None else self.choose(mpi, self)
