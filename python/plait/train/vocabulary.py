"""Logits whose columns are cut over the tensor axis: the largest, and all of them on every rank."""

from __future__ import annotations

import math

import numpy as np

from plait.backend import Array, contiguous, empty, float32, kernels, to_host
from plait.comm import Communicator


def largest(logits: Array, vocabulary: int, tensor: Communicator) -> Array:
    """The column of the largest of `vocabulary` logits; the first among equals, NaN before all.
    logits (..., columns) are this rank's, padding last; int64 (...), numpy's."""
    first = tensor.leaves.bounds[tensor.rank] * _width(logits, tensor)
    rows, columns = math.prod(logits.shape[:-1]), logits.shape[-1]
    value, index = empty((1, rows)), empty((1, rows), np.int32)
    kernels.argmax(
        contiguous(logits).reshape(rows, columns), min(max(vocabulary - first, 0), columns),
        value[0], index[0],
    )  # fmt: skip
    every = tensor.all_gather(to_host(value), axis=0)
    places = tensor.all_gather(to_host(index) + np.int64(first), axis=0)
    winner = every.argmax(0)
    result: Array = np.take_along_axis(places, winner[None], 0)[0]
    return result.reshape(logits.shape[:-1])


def gathered(logits: Array, vocabulary: int, tensor: Communicator) -> Array:
    """All `vocabulary` columns, float32; logits are numpy's."""
    bounds = [leaf * _width(logits, tensor) for leaf in tensor.leaves.bounds]
    whole = tensor.all_gather(logits, axis=logits.ndim - 1, bounds=bounds)
    result: Array = whole[..., :vocabulary].astype(float32)
    return result


def _width(logits: Array, tensor: Communicator) -> int:
    """Columns of a leaf, all of which have as many."""
    return int(logits.shape[-1]) // len(tensor.leaves.run(tensor.rank))
