"""Sums, maxima and minima over ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from plait.backend import beside, same_array, share_memory
from plait.comm.arrays import (
    checked_axis,
    checked_nodes,
    checked_out,
    delivered,
    direct,
    flat_reduction,
    is_node,
    reducible,
)
from plait.comm.combine import FLOAT32, Op, Reduction, checked_bounds
from plait.comm.ranks import Ranks, collective
from plait.comm.tree import Leaves
from plait.comm.work import Array, Steps


class Reductions(Ranks):
    @collective
    def all_reduce(
        self, x: Array, op: Op = "sum", *, out: Array | None = None, blocking: bool = True
    ) -> Any:
        """The sum, max or min over ranks (rank = leaf), in the shape and type of x, on every rank.

        Floats cross in their storage type. NaN wins in max and min. out may be x.
        """
        keyed, values = reducible("all_reduce", x, op)
        if self.size == 1 and (out is None or same_array(out, x)):
            return self._given("all_reduce", x, x, blocking)
        out = checked_out("all_reduce", out, x.shape, x.dtype, x)
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
        given, added = nodes, bias
        nodes, bias = checked_nodes("all_reduce_nodes", self.leaves, self.rank, nodes, bias)
        there = out is None or (out.shape == nodes.shape[1:] and is_node(out, nodes))
        if self.size == 1 and bias is None and np.dtype(dtype) == FLOAT32 and there:
            return self._given("all_reduce_nodes", nodes, nodes[0], blocking)
        out = checked_out("all_reduce_nodes", out, nodes.shape[1:], np.dtype(dtype), nodes)
        reduction = flat_reduction(nodes, self.leaves, "sum", bias, self.size)
        steps = self._all_reduce_steps(reduction, False, out)
        return self._start("all_reduce_nodes", given, steps, out, blocking, added)

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
            blocking, x, None,
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
        given, added = nodes, bias
        nodes, bias = checked_nodes("reduce_scatter_nodes", self.leaves, self.rank, nodes, bias)
        if self.size == 1 and bias is None and np.dtype(dtype) == FLOAT32 and out is None:
            return self._given("reduce_scatter_nodes", nodes, nodes[0], blocking)
        return self._scatter(
            "reduce_scatter_nodes", nodes, self.leaves, "sum", axis, bounds, bias, np.dtype(dtype),
            False, out, blocking, given, added,
        )  # fmt: skip

    def _all_reduce_steps(self, reduction: Reduction, keyed: bool, out: Array) -> Steps:
        _, _, n, inner = reduction.nodes.shape
        target = direct(out, reduction.nodes.dtype if keyed else out.dtype)
        if share_memory(target, reduction.nodes) and not is_node(target, reduction.nodes):
            target = beside(target, target.shape, target.dtype)
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
        given: Array,
        added: Array | None,
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
        out = checked_out(name, out, own, dtype, nodes)

        target = direct(out, nodes.dtype if keyed else out.dtype)
        if share_memory(target, nodes):
            target = beside(target, target.shape, target.dtype)
        steps = self._reduce_scatter(reduction, target.reshape(outer, length, inner))
        steps = delivered(steps, target, keyed, out)
        return self._start(name, given, steps, out, blocking, added)
