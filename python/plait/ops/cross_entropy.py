"""Cross-entropy over logits that stay sharded by columns: only a maximum and a sum per row cross
ranks."""

from __future__ import annotations

from typing import Any

import numpy as np

from plait.autograd import Context, Function
from plait.backend import Array, bits, empty, float32, kernels, on_device, to_device, zeros
from plait.comm import Communicator
from plait.comm.tree import merges


class CrossEntropy(Function):
    """logits (..., local columns) -> float32 losses (...), 0 where the target is negative.

    Columns are global columns first_column ... of a vocabulary padded to equal tensor leaves;
    `vocabulary` is its true size. backward takes a number: the factor of every loss (1 / unmasked
    tokens of the step).
    """

    @staticmethod
    def forward(
        ctx: Context, logits: Array, targets: Array, vocabulary: int, comm: Communicator
    ) -> Array:
        rows = logits.reshape(-1, logits.shape[-1])
        flat_targets = targets.reshape(-1) if on_device(targets) else _flat(targets)
        statistics, target_logit, first = row_statistics(rows, flat_targets, vocabulary, comm)
        losses = empty(flat_targets.shape, float32)
        kernels.cross_entropy_loss(statistics[0], statistics[1], target_logit, flat_targets, losses)
        ctx.save(rows, flat_targets, statistics, first, vocabulary, logits.shape)
        return losses.reshape(logits.shape[:-1])

    @staticmethod
    def backward(ctx: Context, scale: float) -> Array:
        rows, targets, statistics, first, vocabulary, shape = ctx.saved
        # The logits have no other use: their gradient takes their memory.
        kernels.cross_entropy_backward(
            rows, targets, statistics[0], statistics[1], first, vocabulary, float(scale), rows
        )
        grad: Array = rows.reshape(shape)
        return grad


def _flat(targets: Array) -> Array:
    return to_device(np.ascontiguousarray(targets, np.int32).ravel())


def row_statistics(
    rows: Array, targets: Array, vocabulary: int, comm: Communicator
) -> tuple[Array, Array, int]:
    """(2, R) maximum and sum of exp(logit - maximum) over the vocabulary, the target's logit (R),
    and this rank's first global column."""
    leaves = comm.leaves
    run = leaves.run(comm.rank)
    width = rows.shape[1] // len(run)  # vocabulary leaves are equal
    first = run.start * width
    parts, target_logit = empty((len(run), 2, len(rows))), zeros(len(rows), float32)
    for index, part in enumerate(parts):
        columns = slice(index * width, (index + 1) * width)
        kernels.cross_entropy_statistics(
            rows[:, columns],
            targets,
            first + columns.start,
            vocabulary,
            part[0],
            part[1],
            target_logit,
        )
    nodes = leaves.nodes(comm.rank)
    own = empty((len(nodes), 2, len(rows)))
    for out, (low, high) in zip(own, nodes, strict=True):
        inner = [(leaf, leaf + 1) for leaf in range(low, high)]
        block = parts[low - run.start : high - run.start]
        kernels.cross_entropy_merge(block, merges(leaves.count, inner), out)
    every: Any = comm.all_gather(own, axis=0, bounds=_node_bounds(comm))
    statistics = empty((2, len(rows)))
    kernels.cross_entropy_merge(every, leaves.merges(), statistics)
    comm.all_reduce(bits(target_logit), out=bits(target_logit))
    return statistics, target_logit, first


def _node_bounds(comm: Communicator) -> list[int]:
    bounds = [0]
    for rank in range(comm.size):
        bounds.append(bounds[-1] + len(comm.leaves.nodes(rank)))
    return bounds
