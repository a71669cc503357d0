"""The order of samples: a permutation an epoch, from integers alone, at any size."""

import numpy as np
import pytest

from plait.data.sampler import Sampler, permute

SIZES = (1, 2, 3, 7, 100, 1023, 1024, 1025)


def epoch(n: int, seed: int, number: int) -> list[int]:
    return permute(np.arange(n, dtype=np.uint64), n, seed, number).tolist()


@pytest.mark.parametrize("n", SIZES)
def test_an_epoch_is_a_permutation(n: int) -> None:
    for number in range(4):
        assert sorted(epoch(n, 5, number)) == list(range(n))


def test_epochs_and_seeds_differ_and_mix() -> None:
    orders = [epoch(1023, seed, number) for seed in (0, 1, 2**63 + 1) for number in (0, 1)]
    assert len({tuple(order) for order in orders}) == 6
    for order in orders:
        steps = np.diff(order)
        assert abs(np.corrcoef(order, np.arange(1023))[0, 1]) < 0.15
        assert np.unique(steps).size > 600  # no stride, no block stays together


def test_every_order_of_three_is_seen() -> None:
    assert len({tuple(epoch(3, 0, number)) for number in range(200)}) == 6


def test_every_first_sample_is_as_likely() -> None:
    first = [epoch(7, 11, number)[0] for number in range(2100)]
    counts = np.bincount(first, minlength=7)
    assert counts.min() > 230
    assert counts.max() < 370


def test_the_order_is_the_same_on_every_machine() -> None:
    assert epoch(10, 1, 0) == [5, 2, 9, 6, 3, 0, 1, 4, 8, 7]
    big = permute(np.array([0, 1, 10**12 - 1], np.uint64), 10**12, 1, 3)
    assert big.tolist() == [372909545026, 760841118149, 384461527189]


@pytest.mark.parametrize(("samples", "batch"), [(1, 5), (3, 7), (100, 16), (7, 7), (1025, 64)])
def test_batches_run_through_epochs(samples: int, batch: int) -> None:
    sampler = Sampler(samples, batch, seed=9)
    steps = -(-3 * samples // batch)
    stream = np.concatenate([sampler.indices(step) for step in range(steps)])
    for number in range(3):
        part = stream[number * samples : (number + 1) * samples].tolist()
        assert part == epoch(samples, 9, number)


def test_slices_of_a_step_are_those_of_the_whole() -> None:
    sampler = Sampler(10, 16, seed=3)
    whole = sampler.indices(7)
    assert whole.dtype == np.int64
    for start, stop in ((0, 0), (0, 5), (5, 16), (3, 4), (16, 16)):
        assert sampler.indices(7, start, stop).tolist() == whole[start:stop].tolist()


def test_a_step_of_a_trillion_samples_needs_no_index_array() -> None:
    sampler = Sampler(10**12, 4096, seed=1)
    found = np.concatenate([sampler.indices(step) for step in (0, 1, 10**8, 10**9)])
    assert found.min() >= 0
    assert found.max() < 10**12
    assert np.unique(found[:-4096]).size == 3 * 4096
    assert abs(found.mean() / 10**12 - 0.5) < 0.02


@pytest.mark.parametrize(("samples", "batch"), [(0, 4), (4, 0), (-1, 4)])
def test_empty_sizes_are_refused(samples: int, batch: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Sampler(samples, batch)


@pytest.mark.parametrize(("step", "start", "stop"), [(-1, 0, 4), (0, -1, 4), (0, 3, 2), (0, 0, 5)])
def test_slices_outside_the_batch_are_refused(step: int, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="batch of 4"):
        Sampler(10, 4).indices(step, start, stop)
