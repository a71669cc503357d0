"""Sums over a dimension that is cut into tensor leaves, and chains over positions for replicated
parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from plait.backend import Array, as_type, contiguous, empty, float32, kernels
from plait.comm import Communicator
from plait.comm.after import Norm, normed
from plait.ops.parameter import Parameter
from plait.ops.position import Position, Segment


class Last(NamedTuple):
    """What is added to a sum: the bias before it is rounded, the residual to what is stored; and
    the norm of that."""

    bias: Array | None = None
    residual: Array | None = None
    norm: Norm | None = None


NOTHING = Last()


def fan_in(arrays: Any) -> Array:
    """The sum of the gradients of all uses of a tensor, in float32, in the order given."""
    out = empty(arrays[0].shape, arrays[0].dtype)
    kernels.add([contiguous(x) for x in arrays], out)
    return out


def sum_over_leaves(
    comm: Communicator,
    bounds: list[int],
    shape: tuple[int, ...],
    dtype: Any,
    part: Callable[[int, int, list[int], Last, Array], None],
    *,
    last: Last = NOTHING,
    sequence: int | None = None,
) -> Any:
    """The canonical sum over tensor leaves of a sharded dimension: a Work whose result has `shape`,
    or is a Normed where a norm comes last.

    bounds: this rank's leaves in its own indices. part(start, stop, leaves, last, out) writes the
    sum of [start, stop), cut at `leaves` (relative to start), for one complete tree node; it adds
    what is to be added if that is the whole tree, where last is `last`, else nothing.
    sequence: its length, to give each rank its own positions (axis 1) of the sum instead of the
    whole; those of the residual are the rank's own, too.
    """
    first = comm.leaves.bounds[comm.rank]
    nodes = comm.leaves.nodes(comm.rank)
    whole = len(nodes) == 1 and nodes[0] == (0, comm.leaves.count)
    if whole:
        # The whole tree is here: the kernel itself rounds to the storage type, as the owner would.
        out = empty(shape, dtype)
        part(0, bounds[-1] - bounds[0], [b - bounds[0] for b in bounds], last, out)
        return Ready(out if last.norm is None else normed(out, None, last.norm))
    bias = None if last.bias is None else as_type(last.bias, float32)
    stack = comm.empty((len(nodes), *shape), float32)
    for out, (low, high) in zip(stack, nodes, strict=True):
        cut = bounds[low - first : high - first + 1]
        start = cut[0] - bounds[0]
        part(start, cut[-1] - bounds[0], [b - cut[0] for b in cut], NOTHING, out)
    if sequence is None:
        # What follows is another pass, to memory of this rank alone, or the same on the way there.
        apart = not comm.fuses and (last.residual is not None or last.norm is not None)
        out = (empty if apart else comm.empty)(shape, dtype)
        return comm.all_reduce_nodes(
            stack, bias=bias, residual=last.residual, norm=last.norm, dtype=dtype, out=out,
            blocking=False,
        )  # fmt: skip
    bounds = sequence_bounds(comm, sequence)
    work = comm.reduce_scatter_nodes(
        stack, axis=1, bounds=bounds, bias=bias, dtype=dtype, blocking=False
    )
    if last.norm is not None:
        work.then(partial(normed, residual=last.residual, norm=last.norm))
    elif last.residual is not None:
        work.then(lambda total: fan_in((last.residual, total)))
    return work


class Ready:
    """A result that needs no communication, in the form of a Work."""

    def __init__(self, result: Any):
        self._result = result

    def wait(self) -> Any:
        return self._result


def position_chunks(comm: Communicator, position: Position, length: int) -> list[slice]:
    """For each tensor leaf of this rank, its chunk of a sample's positions, in local indices.

    length: how many positions the local array has; all of them, or this rank's own if the position
    says that sequences are cut over tensor ranks."""
    cut = comm.leaves.cut(position.sequence or length, comm.rank)
    first = cut[0] if position.sequence else 0
    return [slice(a - first, b - first) for a, b in itertools.pairwise(cut)]


def sequence_bounds(comm: Communicator, length: int) -> list[int]:
    """Where a sequence of `length` positions is cut between the tensor ranks: size + 1 bounds."""
    return [leaf * length // comm.leaves.count for leaf in comm.leaves.bounds]


def cut_sequence(position: Position, x: Array) -> int | None:
    """The length of the sequence that x (B, local positions, C) is cut along; None if it is whole,
    or (B, C)."""
    return position.sequence if x.ndim > 2 else None


def gather_sequence(comm: Communicator, position: Position, x: Array) -> Array:
    """(B, local positions, C) -> (B, S, C) if sequences are cut over tensor ranks, else x."""
    length = cut_sequence(position, x)
    if length is None:
        return x
    bounds = sequence_bounds(comm, length)
    gathered: Array = comm.all_gather(x, axis=1, bounds=bounds)
    return gathered


def replicated_chains(
    parameter: Parameter, position: Position, chunks: list[slice]
) -> Iterator[tuple[Segment, tuple[slice, slice], Array]]:
    """(segment, [samples, positions], gradient buffer) for each chain of a replicated parameter."""
    for segment, grads in parameter.segments(position):
        for chunk, grad in zip(chunks, grads, strict=True):
            yield segment, (segment.samples, chunk), grad
