"""The contract of communicators: collectives over ranks, the same bits on every transport.

This file checks arguments and says what each collective means; a transport fills in the hooks of
transport.py. Every collective is an identity at size 1: the result may then be its input.
"""

from __future__ import annotations

import copy
import math
import pickle
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial, wraps
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from plait.backend import contiguous, copied, empty, kernels
from plait.comm.arrays import (
    address,
    checked_axis,
    checked_nodes,
    checked_out,
    delivered,
    direct,
    flat_reduction,
    is_node,
    reducible,
    side_by_side,
)
from plait.comm.combine import FLOAT32, Bounds, Op, Reduction, checked_bounds
from plait.comm.plan import PLANS, Plan
from plait.comm.transport import Transport
from plait.comm.tree import Leaves
from plait.comm.work import Array, Steps, Work, progress, run

Method = TypeVar("Method", bound=Callable[..., Any])


def collective(method: Method) -> Method:
    """A collective that tells the other ranks where this one refuses its arguments."""

    @wraps(method)
    def checked(self: Communicator, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except kernels.Disagreement:
            raise
        except ValueError:
            if self._plans is None and self.size > 1:
                Work("refused", self._refused()).wait()
            raise

    return checked  # type: ignore[return-value]


class Communicator(Transport):
    """Ranks with collectives.

    Every rank of the communicator calls the same collectives in the same order. With blocking=False
    a collective returns a Work, whose wait() gives the result; the arrays it was given must be left
    alone until then. Arrays may have any type that numpy or ml_dtypes know; sums of floats are
    added in float32 (float64 in float64) in the order of the tree over `leaves`, rounded once.

    tally: of each collective, how often it was called here, and the bytes this rank handed in.
    nodes: a number for each rank's node.
    """

    transport: str
    rank: int
    size: int
    _plans: list[Plan] | None = None  # takes what would be started

    def __init__(self, rank: int, size: int, leaves: Leaves | None = None):
        self.rank, self.size = rank, size
        self.leaves = leaves or Leaves.even(size, size)
        self.nodes = tuple(range(size))
        self.tally: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])

    def with_leaves(self, leaves: Leaves) -> Communicator:
        """This communicator with other leaves for the sums of nodes."""
        if len(leaves.bounds) != self.size + 1:
            raise ValueError(
                f"leaves for {len(leaves.bounds) - 1} ranks on a communicator of {self.size}"
            )
        other = copy.copy(self)
        other.leaves = leaves
        return other

    def reset_tally(self) -> None:
        for counts in self.tally.values():  # plans keep theirs
            counts[:] = 0, 0

    # --- reductions ---------------------------------------------------------------------------

    @collective
    def all_reduce(
        self, x: Array, op: Op = "sum", *, out: Array | None = None, blocking: bool = True
    ) -> Any:
        """The sum, max or min over ranks (rank = leaf), in the shape and type of x, on every rank.

        Floats cross in their storage type. NaN wins in max and min. out may be x.
        """
        keyed, values = reducible("all_reduce", x, op)
        if self.size == 1 and (out is None or out is x):
            return self._given("all_reduce", x, x, blocking)
        out = checked_out("all_reduce", out, x.shape, x.dtype)
        leaves = Leaves.even(self.size, self.size)
        reduction = flat_reduction(values[None], leaves, op, None, self.size)
        steps = self._all_reduce_steps(reduction, keyed, out)
        return self._start("all_reduce", x, steps, out, blocking)

    @collective
    def all_reduce_nodes(
        self,
        nodes: Array,
        *,
        bias: Array | None = None,
        dtype: DTypeLike = np.float32,
        out: Array | None = None,
        blocking: bool = True,
    ) -> Any:
        """The tree's sum over all leaves, on every rank.

        nodes (k, *shape) float32: this rank's maximal complete nodes, `leaves.nodes(rank)`. bias
        (the last axis of shape) is added in float32; then one rounding to dtype. Returns shape.
        """
        nodes, bias = checked_nodes("all_reduce_nodes", self.leaves, self.rank, nodes, bias)
        if self.size == 1 and bias is None and np.dtype(dtype) == FLOAT32 and out is None:
            return self._given("all_reduce_nodes", nodes, nodes[0], blocking)
        out = checked_out("all_reduce_nodes", out, nodes.shape[1:], np.dtype(dtype))
        reduction = flat_reduction(nodes, self.leaves, "sum", bias, self.size)
        steps = self._all_reduce_steps(reduction, False, out)
        return self._start("all_reduce_nodes", nodes, steps, out, blocking)

    @collective
    def reduce_scatter(
        self,
        x: Array,
        *,
        axis: int = 0,
        bounds: Sequence[int] | None = None,
        op: Op = "sum",
        out: Array | None = None,
        blocking: bool = True,
    ) -> Any:
        """The sum, max or min over ranks (rank = leaf), cut along `axis`.

        Rank r gets [bounds[r], bounds[r + 1]); bounds left out are r * n // size.
        """
        keyed, values = reducible("reduce_scatter", x, op)
        if self.size == 1 and out is None:
            return self._given("reduce_scatter", x, x, blocking)
        leaves = Leaves.even(self.size, self.size)
        return self._scatter(
            "reduce_scatter", values[None], leaves, op, axis, bounds, None, x.dtype, keyed, out,
            blocking,
        )  # fmt: skip

    @collective
    def reduce_scatter_nodes(
        self,
        nodes: Array,
        *,
        axis: int = 0,
        bounds: Sequence[int] | None = None,
        bias: Array | None = None,
        dtype: DTypeLike = np.float32,
        out: Array | None = None,
        blocking: bool = True,
    ) -> Any:
        """The sum of all_reduce_nodes, cut along `axis` of shape as in reduce_scatter."""
        nodes, bias = checked_nodes("reduce_scatter_nodes", self.leaves, self.rank, nodes, bias)
        if self.size == 1 and bias is None and np.dtype(dtype) == FLOAT32 and out is None:
            return self._given("reduce_scatter_nodes", nodes, nodes[0], blocking)
        return self._scatter(
            "reduce_scatter_nodes", nodes, self.leaves, "sum", axis, bounds, bias, np.dtype(dtype),
            False, out, blocking,
        )  # fmt: skip

    # --- moves --------------------------------------------------------------------------------

    @collective
    def all_gather(
        self,
        x: Array,
        *,
        axis: int = 0,
        bounds: Sequence[int] | None = None,
        out: Array | None = None,
        blocking: bool = True,
    ) -> Any:
        """The x of all ranks side by side along `axis`: rank r's at [bounds[r], bounds[r + 1]).

        Without bounds every rank has the same length. x may be this rank's slice of out.
        """
        axis = checked_axis("all_gather", axis, x.ndim)
        length = x.shape[axis]
        if bounds is None:
            bounds = tuple(length * rank for rank in range(self.size + 1))
        found = checked_bounds(bounds, bounds[-1], self.size)
        if found[self.rank + 1] - found[self.rank] != length:
            raise ValueError(
                f"all_gather: rank {self.rank} has length {length} on axis {axis}, "
                f"bounds {found} say {found[self.rank + 1] - found[self.rank]}"
            )
        shape = (*x.shape[:axis], found[-1], *x.shape[axis + 1 :])
        if self.size == 1 and (out is None or out is x):
            return self._given("all_gather", x, x, blocking)
        out = checked_out("all_gather", out, shape, x.dtype)
        steps = self._all_gather_steps(x, axis, found, out)
        return self._start("all_gather", x, steps, out, blocking)

    @collective
    def all_to_all(
        self,
        x: Array,
        send_bounds: Sequence[int],
        receive_bounds: Sequence[int],
        *,
        out: Array | None = None,
        blocking: bool = True,
    ) -> Any:
        """Rows x[send_bounds[r]:send_bounds[r + 1]] go to rank r; rank r's rows arrive at
        [receive_bounds[r], receive_bounds[r + 1]) of the result."""
        if x.ndim == 0:
            raise ValueError("all_to_all needs an array with rows, got a scalar")
        sends = checked_bounds(send_bounds, len(x), self.size)
        receives = checked_bounds(receive_bounds, receive_bounds[-1], self.size)
        own = [bounds[self.rank + 1] - bounds[self.rank] for bounds in (sends, receives)]
        if own[0] != own[1]:
            raise ValueError(
                f"all_to_all: rank {self.rank} sends {own[0]} rows to itself and receives {own[1]}"
            )
        out = checked_out("all_to_all", out, (receives[-1], *x.shape[1:]), x.dtype)
        given = copied(x) if np.may_share_memory(x, out) else x
        steps = self._all_to_all_steps(given, sends, receives, out)
        return self._start("all_to_all", x, steps, out, blocking)

    @collective
    def broadcast(self, x: Array, root: int = 0, *, blocking: bool = True) -> Any:
        """x of rank `root` on every rank, in place; returns x."""
        self._check_rank("broadcast", root)
        checked_out("broadcast", x, x.shape, x.dtype)
        if self.size == 1:
            return self._given("broadcast", x, x, blocking)
        return self._start("broadcast", x, self._broadcast_steps(x, root), x, blocking)

    def send(self, x: Array, dest: int, tag: int = 0, *, blocking: bool = True) -> Any:
        """Sends x to rank `dest`, which receives it with the same tag, shape and type."""
        self._check_rank("send", dest)
        steps = self._send(contiguous(x).reshape(-1), dest, tag)
        return self._start("send", x, steps, None, blocking)

    def recv(self, out: Array, source: int, tag: int = 0, *, blocking: bool = True) -> Any:
        """Receives into out what rank `source` sent with this tag; returns out."""
        self._check_rank("recv", source)
        checked_out("recv", out, out.shape, out.dtype)
        return self._start("recv", None, self._recv_steps(out, source, tag), out, blocking)

    def barrier(self) -> None:
        """Returns once every rank has called it."""
        self._start("barrier", None, self._barrier(), None, True)

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

    # --- for hot paths --------------------------------------------------------------------------

    def plan(self, collective: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """The collective of this name with these arguments, checked and laid out once: every call
        of what it returns runs it on what the arrays hold then, and gives its result.

        Without `out` the result is the plan's own, and the next call overwrites it. All ranks must
        call their plans in the same order, as they would the collectives; the arrays must stay.
        """
        if collective not in PLANS:
            raise ValueError(f"plan: {collective!r} is none of {', '.join(PLANS)}")
        if "blocking" in kwargs:
            raise ValueError("plan: a plan's call returns when its result is there: no blocking=")
        other = copy.copy(self)
        other._plans = []
        getattr(other, collective)(*args, **kwargs)
        (found,) = other._plans
        return found if found.prepared else partial(getattr(self, collective), *args, **kwargs)

    # --- the communicator itself --------------------------------------------------------------

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

    def progress(self) -> None:
        """Advances every Work of this process without waiting."""
        progress()

    @abstractmethod
    def abort(self, code: int) -> None:
        """Ends all ranks of the job with this exit code."""

    def close(self) -> None:
        """Gives back what the transport holds. All ranks call it, with nothing under way; it and
        its with_leaves are then of no use. May be called again."""

    # --- from the public collectives to the hooks ----------------------------------------------

    def _start(self, name: str, x: Array | None, steps: Steps, result: Any, blocking: bool) -> Any:
        if self._plans is not None:
            self._plans.append(Plan(self, name, x, steps, result))
            return None
        if x is not None:
            tally = self.tally[name]
            tally[0] += 1
            tally[1] += x.nbytes
        return run(name, steps, result) if blocking else Work(name, steps, result)

    def _given(self, name: str, x: Array, result: Array, blocking: bool) -> Any:
        return self._start(name, x, (), result, blocking)

    def _all_reduce_steps(self, reduction: Reduction, keyed: bool, out: Array) -> Steps:
        _, _, n, inner = reduction.nodes.shape
        target = direct(out, reduction.nodes.dtype if keyed else out.dtype)
        if np.may_share_memory(target, reduction.nodes) and not is_node(target, reduction.nodes):
            target = empty(target.shape, target.dtype)
        steps = self._all_reduce(reduction, target.reshape(n, inner))
        return delivered(steps, target, keyed, out)

    def _scatter(
        self,
        name: str,
        nodes: Array,
        leaves: Leaves,
        op: Op,
        axis: int,
        bounds: Sequence[int] | None,
        bias: Array | None,
        dtype: np.dtype[Any],
        keyed: bool,
        out: Array | None,
        blocking: bool,
    ) -> Any:
        k, *shape = nodes.shape
        axis = checked_axis(name, axis, len(shape))
        found = checked_bounds(bounds, shape[axis], self.size)
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        reduction = Reduction(
            nodes.reshape(k, outer, shape[axis], inner),
            leaves,
            op,
            found,
            bias,
            bias_cut=axis == len(shape) - 1,
        )
        length = found[self.rank + 1] - found[self.rank]
        own = (*shape[:axis], length, *shape[axis + 1 :])
        out = checked_out(name, out, own, dtype)

        target = direct(out, nodes.dtype if keyed else out.dtype)
        if np.may_share_memory(target, nodes):
            target = empty(target.shape, target.dtype)
        steps = self._reduce_scatter(reduction, target.reshape(outer, length, inner))
        return self._start(name, nodes, delivered(steps, target, keyed, out), out, blocking)

    def _all_gather_steps(self, x: Array, axis: int, bounds: Bounds, out: Array) -> Steps:
        outer, inner = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
        lengths = [outer * inner * (b - a) for a, b in pairwise(bounds)]
        target = out if outer == 1 and out.flags.c_contiguous else empty(out.size, out.dtype)
        flat, x = target.reshape(-1), contiguous(x).reshape(-1)
        own = flat[sum(lengths[: self.rank]) :][: x.size]
        if np.may_share_memory(x, flat) and address(x) != address(own):
            x = copied(x)
        steps = self._all_gather(x, lengths, flat)
        return steps if target is out else side_by_side(steps, flat, lengths, axis, bounds, out)

    def _all_to_all_steps(self, x: Array, sends: Bounds, receives: Bounds, out: Array) -> Steps:
        row = math.prod(x.shape[1:])
        target = direct(out, out.dtype)
        steps = self._all_to_all(
            contiguous(x).reshape(-1),
            tuple(row * b for b in sends),
            target.reshape(-1),
            tuple(row * b for b in receives),
        )
        return delivered(steps, target, False, out)

    def _broadcast_steps(self, x: Array, root: int) -> Steps:
        target = contiguous(x)
        return delivered(self._broadcast(target.reshape(-1), root), target, False, x)

    def _recv_steps(self, out: Array, source: int, tag: int) -> Steps:
        target = direct(out, out.dtype)
        return delivered(self._recv(target.reshape(-1), source, tag), target, False, out)

    # --- checks -------------------------------------------------------------------------------

    def _check_rank(self, name: str, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise ValueError(f"{name}: rank {rank} is outside a communicator of {self.size}")
