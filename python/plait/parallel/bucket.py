"""Flat buffers: the weights and gradients of some parameters end to end, reduced and updated as
one.

Over the data axis a bucket is cut at multiples of 1024 elements inside one (parameter, tensor leaf)
slice, so that sums over those chunks never depend on the layout. Each data rank reduces its cut,
and with ZeRO also keeps the optimizer's state for its cut only.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Container, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from plait.backend import Array, empty, fill, float32, kernels
from plait.comm import Communicator, Work
from plait.comm.tree import merges
from plait.ops.parameter import Parameter
from plait.parallel.rows import RowSum

CHUNK = 1024  # elements; ops.hpp exact_sum
ALIGN = 16  # elements between parameters


@dataclass(frozen=True)
class Span:
    """A contiguous piece of a bucket and where it lies in the flat global array of its
    parameter."""

    parameter: Parameter
    start: int  # in the bucket
    stop: int
    global_start: int


class Bucket:
    """Parameters of one kind: all split over tensor leaves, or all replicated; all trained, or all
    running statistics."""

    def __init__(
        self, parameters: list[Parameter], data: Communicator, tensor: Communicator, slots: int,
        precision: Any, zero: int,
    ):  # fmt: skip
        self.parameters, self.data, self.tensor = parameters, data, tensor
        self.replicated = parameters[0].replicated
        self.statistic = parameters[0].statistic
        assert all(_kind(p) == _kind(parameters[0]) for p in parameters)
        self.offsets: list[int] = []
        size = 0
        for p in parameters:
            self.offsets.append(size)
            size += -(-prod(p.local_shape) // ALIGN) * ALIGN
        self.size = size
        self.slices = list(self._slices())
        self.bounds = self._cut(data.size)
        self.cut = slice(self.bounds[data.rank], self.bounds[data.rank + 1])
        self.zero = zero > 0
        self.own = self.cut if self.zero else slice(0, size)
        make = data.empty if self.zero else empty
        self.weights = make(size, float32 if self.statistic else precision)
        fill(self.weights, 0)
        leaves = (len(tensor.leaves.run(tensor.rank)),) if self.replicated else ()
        self.grads = data.empty((slots, *leaves, size), float32)
        fill(self.grads, 0)
        for p, offset in zip(parameters, self.offsets, strict=True):
            count = prod(p.local_shape)
            p.array = self.weights[offset : offset + count].reshape(p.local_shape)
            part = self.grads[..., offset : offset + count]
            p.grads = part.reshape(*self.grads.shape[:-1], *p.local_shape)
        self.gradient: Array = empty(0)  # float32, of `own`, after finish()
        self._work: Work | None = None
        self._rows: RowSum | None = None

    def _slices(self) -> Any:
        """(parameter, start, stop) of each (parameter, tensor leaf) in the bucket."""
        for p, offset in zip(self.parameters, self.offsets, strict=True):
            row = prod(p.shape[1:])
            rows = p.leaf_rows or (0, p.local_shape[0])
            for first, last in itertools.pairwise(rows):
                if first < last:
                    yield p, offset + first * row, offset + last * row

    def alike(self) -> Iterator[tuple[Parameter, int, int]]:
        """Runs of parameters that an optimizer treats alike, each with its first one. Gaps between
        them are zeros, weights, gradients and state, and stay so."""
        for _, run in itertools.groupby(
            self.slices, lambda each: (each[0].decays, each[0].momentum)
        ):
            first, *rest = run
            yield first[0], first[1], rest[-1][2] if rest else first[2]

    def _cut(self, size: int) -> list[int]:
        chunks = [start for _, a, b in self.slices for start in range(a, b, CHUNK)] or [0]
        inner = [
            chunks[bisect_right(chunks, rank * self.size // size) - 1] for rank in range(1, size)
        ]
        return [0, *inner, self.size]

    def start(self, nodes: int) -> None:
        """Starts the sum over data leaves; slots 0 .. nodes hold this rank's complete tree
        nodes."""
        chains = self.grads[:nodes]
        if self.parameters[0].by_rows:
            self._rows = self._start_rows(nodes)
        if self._rows is not None:
            return
        if self.replicated:
            self._work = self.data.reduce_scatter_nodes(
                chains, axis=1, bounds=self.bounds, blocking=False
            )
        elif self.zero:
            self._work = self.data.reduce_scatter_nodes(chains, bounds=self.bounds, blocking=False)
        else:
            self._work = self.data.all_reduce_nodes(chains, out=chains[0], blocking=False)

    def _start_rows(self, nodes: int) -> RowSum | None:
        """The sum of the rows that occurred, if they are few."""
        (p,) = self.parameters
        touched = p.touched()
        if self.data.size == 1:
            return None
        rows, width = p.local_shape[0], prod(p.shape[1:])
        chains = p.grads[:nodes].reshape(nodes, rows, width)
        bounds = [min(bound, rows * width) for bound in self.bounds]
        found = RowSum(self.data, chains, touched, bounds)
        if not found.sparse:
            return None
        found.start()
        return found

    def finish(self) -> None:
        """Waits for the sum; afterwards `gradient` holds the gradient of `own`."""
        if self._rows is not None:
            self._rows.finish(everywhere=not self.zero)
            self._rows = None
            self.gradient = self.grads[0][self.own]
            return
        assert self._work is not None
        gradient = self._work.wait()
        self._work = None
        if self.replicated:
            gradient = self._sum_tensor_leaves(gradient)
            if not self.zero:
                gradient = self.data.all_gather(gradient, bounds=self.bounds)
        self.gradient = gradient

    def _sum_tensor_leaves(self, chains: Array) -> Array:
        leaves, first = self.tensor.leaves, self.tensor.leaves.bounds[self.tensor.rank]
        nodes = leaves.nodes(self.tensor.rank)
        stack = empty((len(nodes), chains.shape[1]), float32)
        for out, (low, high) in zip(stack, nodes, strict=True):
            counts = merges(leaves.count, [(leaf, leaf + 1) for leaf in range(low, high)])
            kernels.tree_sum(list(chains[low - first : high - first]), counts, None, out)
        total: Array = self.tensor.all_reduce_nodes(stack)
        return total

    def gather_weights(self) -> None:
        """After an update of `own`: starts on the other data ranks' cuts."""
        if self.zero:
            self._work = self.data.all_gather(
                self.weights[self.own], bounds=self.bounds, out=self.weights, blocking=False
            )

    def finish_weights(self) -> None:
        """Waits for them."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def chunks(self) -> list[slice]:
        """The parts of this data rank's cut, none crossing a (parameter, tensor leaf) slice."""
        parts = [slice(max(a, self.cut.start), min(b, self.cut.stop)) for _, a, b in self.slices]
        return [part for part in parts if part.start < part.stop]

    def spans(self, where: slice) -> list[Span]:
        """How `where` maps to global arrays, padding rows left out."""
        found = []
        for p, offset in zip(self.parameters, self.offsets, strict=True):
            row = prod(p.shape[1:])
            limit = (p.true_rows if p.true_rows is not None else p.shape[0]) * row
            for first, last in p.rows:
                start, stop = first * row, min(last * row, limit)
                low = max(offset, where.start)
                high = min(offset + stop - start, where.stop)
                if low < high:
                    found.append(Span(p, low, high, start + low - offset))
                offset += (last - first) * row
        return found


def _kind(p: Parameter) -> tuple[bool, bool]:
    return p.replicated, p.statistic


def make_buckets(
    parameters: list[Parameter],
    data: Communicator,
    tensor: Communicator,
    slots: int,
    precision: Any,
    zero: int,
    target: int,
    alone: Container[str] = (),
) -> list[Bucket]:
    """Buckets of about `target` elements in the order in which backward finishes them. Parameters
    named in `alone` (tied ones) get buckets of their own, so that their cuts agree on every stage;
    so do those whose gradients come by rows."""
    groups: list[list[Parameter]] = []
    for kind in itertools.product((False, True), (False, True)):
        group: list[Parameter] = []
        for p in reversed(parameters):
            if _kind(p) != kind:
                continue
            if p.name in alone or p.by_rows:
                groups.append([p])
                continue
            group.append(p)
            if sum(prod(q.local_shape) for q in group) >= target:
                groups.append(group)
                group = []
        if group:
            groups.append(group)
    order = {id(p): index for index, p in enumerate(reversed(parameters))}
    groups.sort(key=lambda group: max(order[id(p)] for p in group))
    return [Bucket(group, data, tensor, slots, precision, zero) for group in groups]
