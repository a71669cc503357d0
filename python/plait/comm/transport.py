"""What a transport does for a communicator: collectives of contiguous arrays that were checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from plait.backend import copied, share_memory
from plait.comm.after import After
from plait.comm.combine import Bounds, Reduction
from plait.comm.work import Array, Steps


class PeerFailed(RuntimeError):
    """A peer is gone or late, or called another collective of a device's arrays: the communicator
    is of no more use."""


class Transport(ABC):
    """The hooks of a communicator of more than one rank. Each gives polls until it is done,
    and does nothing before the first is asked for."""

    @abstractmethod
    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """An uninitialised array where this transport needs no copy of it."""

    @abstractmethod
    def _all_reduce(self, reduction: Reduction, out: Array) -> Steps:
        """out (n, inner) contiguous = the reduction on every rank; out may be one of the nodes."""

    def _all_reduce_after(self, reduction: Reduction, after: After, out: Array) -> Steps:
        """The same, and what follows: in one pass over the sum, but where a transport's own kernel
        does it. out may be the residual; where there is a norm its rows are the norm's."""
        if after.residual is None:
            yield from self._all_reduce(reduction, out)
            after.follow(out, out)
            return
        total = self.empty(out.shape, out.dtype)
        yield from self._all_reduce(reduction, total)
        if share_memory(after.residual, out):
            after = after._replace(residual=copied(after.residual))
        after.follow(total, out)

    @abstractmethod
    def _reduce_scatter(self, reduction: Reduction, out: Array) -> Steps:
        """out (outer, m, inner) contiguous = this rank's slice. It shares no memory with nodes."""

    @abstractmethod
    def _all_gather(self, x: Array, lengths: Sequence[int], out: Array) -> Steps:
        """out flat = the flat x of all ranks; x is its place in out or shares no memory with it."""

    @abstractmethod
    def _all_to_all(self, x: Array, sends: Bounds, out: Array, receives: Bounds) -> Steps:
        """Flat x, out; bounds in elements."""

    @abstractmethod
    def _broadcast(self, x: Array, root: int) -> Steps:
        """Flat x."""

    @abstractmethod
    def _send(self, x: Array, dest: int, tag: int) -> Steps: ...

    @abstractmethod
    def _recv(self, out: Array, source: int, tag: int) -> Steps: ...

    @abstractmethod
    def _barrier(self) -> Steps: ...

    def _refused(self, x: Array | None) -> Steps:
        """Tells the others that this rank refuses the arguments of a collective, x the first of
        them, where that can be told: no rank waits for it then."""
        return ()
