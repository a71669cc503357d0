"""Logits whose columns are cut over the tensor axis: the largest, and all of them on every rank."""

from __future__ import annotations

import numpy as np

from plait.backend import Array
from plait.comm import Communicator


def largest(logits: Array, vocabulary: int, tensor: Communicator) -> Array:
    """The column of the largest of `vocabulary` logits; the first among equals. logits (...,
    columns) are this rank's, numpy's, padding last; int64 (...)."""
    first = tensor.leaves.bounds[tensor.rank] * _width(logits, tensor)
    own = logits[..., : max(vocabulary - first, 0)].astype(np.float32)
    best = np.full((1, *own.shape[:-1]), -np.inf, np.float32)
    where = np.zeros(best.shape, np.int64)
    if own.shape[-1]:
        where = own.argmax(-1)[None]
        best = np.take_along_axis(own, where[0][..., None], -1)[..., 0][None]
    every = tensor.all_gather(best, axis=0)
    places = tensor.all_gather(where + first, axis=0)
    winner = every.argmax(0)
    result: Array = np.take_along_axis(places, winner[None], 0)[0]
    return result


def gathered(logits: Array, vocabulary: int, tensor: Communicator) -> Array:
    """All `vocabulary` columns, float32."""
    bounds = [leaf * _width(logits, tensor) for leaf in tensor.leaves.bounds]
    whole = tensor.all_gather(logits, axis=logits.ndim - 1, bounds=bounds)
    result: Array = whole[..., :vocabulary].astype(np.float32)
    return result


def _width(logits: Array, tensor: Communicator) -> int:
    """Columns of a leaf, all of which have as many."""
    return int(logits.shape[-1]) // len(tensor.leaves.run(tensor.rank))
