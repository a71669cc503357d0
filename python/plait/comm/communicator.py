"""The contract of communicators: collectives over ranks, the same bits on every transport.

ranks.py, reductions.py and moves.py check arguments and say what each collective means; a transport
fills in the hooks of transport.py. Every collective is an identity at size 1: the result may then
be its input.
"""

from __future__ import annotations

import copy
import pickle
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from plait.backend.host import copied, empty
from plait.comm.moves import Moves
from plait.comm.reductions import Reductions
from plait.comm.tree import Leaves
from plait.comm.work import Array, progress


class Communicator(Reductions, Moves):
    """Ranks with collectives.

    Every rank of the communicator calls the same collectives in the same order. With blocking=False
    a collective returns a Work, whose wait() gives the result; the arrays it was given must be left
    alone until then. Arrays may have any type that numpy or ml_dtypes know; sums of floats are
    added in float32 (float64 in float64) in the order of the tree over `leaves`, rounded once.

    nodes: a number for each rank's node. outside: how many arrays of a device, and their bytes,
    peers could not read where they lay, so that they were copied. stream_ordered: whether a
    collective of a device's arrays is work of its stream, and of nothing else. updates: whether
    update_gather and reduce_update_gather are there, for a device's arrays. fuses: whether its
    kernel also does what follows a sum of them, which then should go to an array of `empty`.
    """

    transport: str
    stream_ordered = False
    updates = fuses = False

    def __init__(self, rank: int, size: int, leaves: Leaves | None = None):
        super().__init__(rank, size, leaves)
        self.nodes = tuple(range(size))
        self.outside = [0, 0]

    def with_leaves(self, leaves: Leaves) -> Communicator:
        """This communicator with other leaves for the sums of nodes."""
        if len(leaves.bounds) != self.size + 1:
            raise ValueError(
                f"leaves for {len(leaves.bounds) - 1} ranks on a communicator of {self.size}"
            )
        other = copy.copy(self)
        other.leaves = leaves
        return other

    @abstractmethod
    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        """A communicator of the ranks with the same color, ordered by key, then rank; None for
        color None. Its leaves are its ranks."""

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """An uninitialised array where this transport needs no copy of it."""
        return empty(shape if isinstance(shape, int) else tuple(shape), dtype)

    def views(self, *arrays: Array) -> list[list[Array]] | None:
        """For each array, every rank's, to be read and written where they lie: if all of them came
        from `empty` and these ranks share a node; else None, on all ranks.

        The arrays of one place in the list have one type on all ranks, and may differ in shape but
        for the first axis. A barrier must follow the last use.
        """
        return None

    def update_gather(
        self, grad: Array, bounds: Sequence[int], adamw: tuple[Any, ...], weight: Array,
        *, blocking: bool = True,
    ) -> Any:  # fmt: skip
        """AdamW's step of this rank's slice of weight, flat, and every rank's new slice on all of
        them, in one kernel. grad: of the slice; adamw: AdamW.arguments."""
        raise NotImplementedError(f"{self.transport} does not update")

    def reduce_update_gather(
        self, grad: Array, bounds: Sequence[int], adamw: tuple[Any, ...], weight: Array,
        *, blocking: bool = True,
    ) -> Any:  # fmt: skip
        """The same for the sum of all ranks' grad, flat and as long as weight (rank = leaf)."""
        raise NotImplementedError(f"{self.transport} does not update")

    def product(self, kind: str, x: Array, w: Array, bounds: Sequence[int], out: Array) -> bool:
        """out = x @ w and the collective in one kernel, if this communicator has one for these
        arrays of a device; else False, on all ranks.

        kind: "matmul_all_reduce", "matmul_reduce_scatter" or "all_gather_matmul", whose arguments
        x, w and out are; bounds: size + 1, where the rows of the product are cut between ranks.
        """
        return False

    def progress(self) -> None:
        """Advances every Work of this process without waiting."""
        progress()

    @abstractmethod
    def abort(self, code: int) -> None:
        """Ends all ranks of the job with this exit code."""

    def close(self) -> None:
        """Gives back what the transport holds. All ranks call it, with nothing under way; it and
        its with_leaves are then of no use. May be called again."""

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """A small Python object of rank `root`, on every rank."""
        if self.size == 1:
            return value
        data = np.frombuffer(pickle.dumps(value) if self.rank == root else b"", np.uint8)
        length = self.broadcast(np.array([data.size], np.int64), root)
        if self.rank != root:
            data = empty(int(length[0]), np.uint8)
        else:
            data = copied(data)
        return pickle.loads(self.broadcast(data, root).tobytes())

    def gather_object(self, value: Any, root: int = 0) -> list[Any] | None:
        """The small Python objects of all ranks in rank order on `root`, None elsewhere."""
        found = self.all_gather_object(value)
        return found if self.rank == root else None

    def all_gather_object(self, value: Any) -> list[Any]:
        """The small Python objects of all ranks in rank order, on every rank."""
        if self.size == 1:
            return [value]
        data = np.frombuffer(pickle.dumps(value), np.uint8)
        lengths = self.all_gather(np.array([data.size], np.int64))
        bounds = [0, *np.cumsum(lengths).tolist()]
        gathered = self.all_gather(data, bounds=bounds)
        return [pickle.loads(gathered[a:b].tobytes()) for a, b in pairwise(bounds)]
