"""How plait verify compares what ranks hold: which parts make a whole, how far two are apart."""

from typing import Any

import numpy as np
import pytest

from plait.backend import bfloat16
from plait.mesh import Coordinates
from plait.verify.compare import Difference, first_difference, wholes
from plait.verify.distance import Values, distances
from plait.verify.key import DATA, FORWARD, STATE, Key
from plait.verify.trace import Pieces, RankTrace, Samples, sample_sums

MASTER = Key(0, STATE, 0, 0, 0, 1, "master of x")
OUTPUT = Key(0, FORWARD, 0, 0, 0, 0, "output of Op (x)")
INPUTS = Key(0, DATA, 0, 0, 0, 0, "inputs")


def rank(data: int, tensor: int, tensors: int = 1, **found: Any) -> RankTrace:
    return RankTrace(data * tensors + tensor, Coordinates(data, tensor, 0), "here", **found)


def activations(first: int, x: np.ndarray, *keys: Key) -> dict[Key, list[Samples]]:
    return {key: [Samples(first, x.shape[1:], sample_sums(x))] for key in keys}


def test_equal_halves_on_two_tensor_ranks_are_copies_not_the_whole() -> None:
    """With ZeRO and 2 x 2 ranks a replicated parameter may be cut in the middle."""
    whole = [rank(0, 0, pieces={MASTER: Pieces(8, ((0, 8),), 5 + 7)})]
    halves = (Pieces(8, ((0, 4),), 5), Pieces(8, ((4, 8),), 7))
    four = [rank(d, t, 2, pieces={MASTER: halves[d]}) for d in (0, 1) for t in (0, 1)]
    assert first_difference(whole, four) is None
    assert first_difference(four, whole) is None
    four[3].pieces[MASTER] = Pieces(8, ((4, 8),), 8)
    assert first_difference(whole, four) == Difference(MASTER, -1, (1, 3))
    note = "the reference parts from itself, at ranks 1, 3"
    assert first_difference(four, whole) == Difference(MASTER, -1, (1, 3), note, alone=True)
    four[3].pieces[MASTER] = Pieces(8, ((3, 7),), 7)
    found = first_difference(whole, four)
    assert found is not None
    assert found.note.startswith("the parts that this layout has do not make one whole: ranks 0, 1")


def test_a_tensor_that_one_rank_leaves_out_or_has_alone() -> None:
    x = np.random.default_rng(1).normal(size=(4, 3, 6)).astype(np.float32)
    one = [rank(0, 0, samples=activations(0, x, INPUTS, OUTPUT))]
    two = [rank(d, 0, samples=activations(2 * d, x[2 * d :][:2], INPUTS, OUTPUT)) for d in (0, 1)]
    assert first_difference(one, two) is None
    del two[1].samples[OUTPUT]
    note = "this layout does not compute it, at rank 1"
    assert first_difference(one, two) == Difference(OUTPUT, 2, (1,), note, alone=True)
    note = "the reference does not compute it, at rank 1"
    assert first_difference(two, one) == Difference(OUTPUT, 2, (1,), note, alone=True)
    two[0].samples[OUTPUT._replace(part=-1)] = two[0].samples[OUTPUT]
    found = first_difference(one, two)
    assert found is not None
    assert found.note == "only this layout computes it, at rank 0"


def test_a_shard_that_one_tensor_rank_leaves_out() -> None:
    x = np.random.default_rng(1).normal(size=(2, 3, 6)).astype(np.float32)
    one = [rank(0, 0, samples=activations(0, x, INPUTS, OUTPUT))]
    two = [rank(0, t, 2, samples=activations(0, x, INPUTS)) for t in (0, 1)]
    two[0].samples |= activations(0, x[..., :3], OUTPUT)
    note = "this layout does not compute it, at rank 1"
    assert first_difference(one, two) == Difference(OUTPUT, 0, (1,), note, alone=True)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shards_end_to_end(axis: int) -> None:
    x = np.random.default_rng(1).normal(size=(5, 6, 4)).astype(np.float32)
    parts = np.split(x, [1, 1], axis)
    groups = [[(i, y.shape, int(sample_sums(y[None])[0])) for i, y in enumerate(p)] for p in
              (parts, parts[::-1], [x], [x, x, x])]  # fmt: skip
    right, swapped, one, copies = map(wholes, groups)
    assert one <= right
    assert one <= copies
    assert not one & swapped


def values(*parts: np.ndarray) -> list[Values]:
    return [Values(t, Coordinates(0, t, 0), "here", [part]) for t, part in enumerate(parts)]


def test_distances_where_the_reference_is_in_shards() -> None:
    x = np.arange(1, 43, dtype=np.float32).reshape(7, 6)
    y = x.copy()
    y[5, 4] = 0.5
    for parts in (np.split(x, [1, 3], 0), np.split(x, [2, 4], 1), np.split(x, [1], 1), [x]):
        for mine in (np.split(y, [5], 0), np.split(y, [3], 1), [y]):
            lines = distances(values(*parts), values(*mine))
            assert len(lines) == 1
            assert "0.5 instead of 35.0; at most 34.5 apart" in lines[0]
            assert lines[0].startswith(f"rank {len(mine) - 1} ")


@pytest.mark.parametrize("dtype", [np.float32, bfloat16, np.float64])
def test_distances_in_units_in_the_last_place(dtype: Any) -> None:
    x = np.array([1, -1, 0], dtype)
    bits = x.view(f"i{x.itemsize}")
    y = (bits + np.array([1, 1, 0], bits.dtype)).view(dtype)
    assert distances(values(x), values(y))[0].endswith(" apart, 1 units in the last place")
    y[2] = np.nan
    assert distances(values(x), values(y))[0].endswith("; not all are finite")
