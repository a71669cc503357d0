"""Sums, maxima and minima over ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from plait.backend import beside, same_array, share_memory
from plait.comm.after import After, Norm, checked_after, others_of
from plait.comm.arrays import (
    checked_axis,
    checked_bias,
    checked_nodes,
    checked_out,
    delivered,
    direct,
    flat_reduction,
    is_node,
    reducible,
)
from plait.comm.combine import BFLOAT16, FLOAT32, Op, Reduction, checked_bounds
from plait.comm.ranks import Ranks, collective
from plait.comm.tree import Leaves
from plait.comm.work import Array


class Reductions(Ranks):
    @collective
    def all_reduce(
        self,
        x: Array,
        op: Op = "sum",
        *,
        bias: Array | None = None,
        residual: Array | None = None,
        norm: Norm | None = None,
        out: Array | None = None,
        blocking: bool = True,
    ) -> Any:
        """The sum, max or min over ranks (rank = leaf), in the shape and type of x, on every rank.

        Floats cross in their storage type. NaN wins in max and min. out may be x. bias, residual
        and norm are for sums in float32 or bfloat16, and as in all_reduce_nodes.
        """
        name, after = "all_reduce", None
        plain = bias is None and residual is None and norm is None
        others = [] if plain else others_of(bias, residual, norm)
        keyed, values = reducible(name, x, op)
        if self.size == 1 and not others and (out is None or same_array(out, x)):
            return self._given(name, x, x, blocking)
        if others and (op != "sum" or x.dtype not in (FLOAT32, BFLOAT16)):
            raise ValueError(
                f"{name}: bias, residual and norm follow a sum of float32 or bfloat16, not a {op} "
                f"of {x.dtype}"
            )
        out = checked_out(name, out, x.shape, x.dtype, x)
        leaves = Leaves.even(self.size, self.size)
        if others:
            bias = checked_bias(name, bias, out.shape)
            after = checked_after(name, residual, norm, out)
        reduction = flat_reduction(values[None], leaves, op, bias, self.size, norm is not None)
        return self._all_reduced(name, x, reduction, after, keyed, out, blocking, others)

    @collective
    def all_reduce_nodes(
        self,
        nodes: Array,
        *,
        bias: Array | None = None,
        residual: Array | None = None,
        norm: Norm | None = None,
        dtype: DTypeLike = np.float32,
        out: Array | None = None,
        blocking: bool = True,
    ) -> Any:
        """The tree's sum over all leaves, on every rank.

        nodes (k, *shape) float32: this rank's maximal complete nodes, `leaves.nodes(rank)`. bias
        (the last axis of shape) is added in float32; then one rounding to dtype. Returns shape.

        residual (shape, dtype), the same on all ranks, is added to what is stored, with the bits of
        an op of its own; out may be it. norm: the result is a Normed, of what there is then.
        """
        name, given, after = "all_reduce_nodes", nodes, None
        plain = bias is None and residual is None and norm is None
        others = [] if plain else others_of(bias, residual, norm)
        nodes = checked_nodes(name, self.leaves, self.rank, nodes)
        shape = nodes.shape[1:]
        there = out is None or (out.shape == shape and is_node(out, nodes))
        if self.size == 1 and not others and np.dtype(dtype) == FLOAT32 and there:
            return self._given(name, nodes, nodes[0], blocking)
        out = checked_out(name, out, shape, np.dtype(dtype), nodes)
        if others:
            bias = checked_bias(name, bias, out.shape)
            after = checked_after(name, residual, norm, out)
        reduction = flat_reduction(nodes, self.leaves, "sum", bias, self.size, norm is not None)
        return self._all_reduced(name, given, reduction, after, False, out, blocking, others)

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
            blocking, x, [],
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
        name, given, others = "reduce_scatter_nodes", nodes, [] if bias is None else [bias]
        nodes = checked_nodes(name, self.leaves, self.rank, nodes)
        bias = checked_bias(name, bias, nodes.shape[1:])
        if self.size == 1 and bias is None and np.dtype(dtype) == FLOAT32 and out is None:
            return self._given(name, nodes, nodes[0], blocking)
        return self._scatter(
            name, nodes, self.leaves, "sum", axis, bounds, bias, np.dtype(dtype), False, out,
            blocking, given, others,
        )  # fmt: skip

    def _all_reduced(
        self, name: str, given: Array, reduction: Reduction, after: After | None, keyed: bool,
        out: Array, blocking: bool, others: Sequence[Array],
    ) -> Any:  # fmt: skip
        """given, others: the arrays that the caller handed in."""
        _, _, n, inner = reduction.nodes.shape
        target = direct(out, reduction.nodes.dtype if keyed else out.dtype)
        if share_memory(target, reduction.nodes) and not is_node(target, reduction.nodes):
            target = beside(target, target.shape, target.dtype)
        flat = target.reshape(n, inner)
        result: Any = out
        if after is None:
            steps = self._all_reduce(reduction, flat)
        else:
            steps = self._all_reduce_after(reduction, after, flat)
            result = after.normed or out
        steps = delivered(steps, target, keyed, out)
        return self._start(name, given, steps, result, blocking, others)

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
        others: Sequence[Array],
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
        return self._start(name, given, steps, out, blocking, others)
