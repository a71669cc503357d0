"""Reading ahead: every step gets its own samples, on one thread at a time, and errors in time."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plait.data import Sampler
from plait.train.batches import Batches


class Recorded:
    """Sample i is i. Threads other than the caller's wait at `gate`; the samples in `bad` fail."""

    def __init__(self) -> None:
        self.reads: list[list[int]] = []
        self.threads: set[int] = set()
        self.caller, self.gate = threading.get_ident(), threading.Event()
        self.gate.set()
        self.bad: set[int] = set()
        self.inside = 0

    def batch(self, indices: Any) -> tuple[Any, Any]:
        self.inside += 1
        assert self.inside == 1, "two threads read at a time"
        if threading.get_ident() != self.caller:
            assert self.gate.wait(60), "the caller waited for this"
        self.reads.append(indices.tolist())
        self.threads.add(threading.get_ident())
        self.inside -= 1
        if self.bad & set(indices.tolist()):
            raise ValueError(f"one of {indices}")
        return indices, indices + 1


def made(dataset: Recorded) -> tuple[Batches, Sampler]:
    sampler = Sampler(40, 8, seed=3)
    share: Any = SimpleNamespace(start=2, stop=6)
    return Batches(dataset, sampler, share), sampler  # type: ignore[arg-type]


def test_each_step_has_its_samples_and_the_next_is_read_ahead() -> None:
    dataset = Recorded()
    batches, sampler = made(dataset)
    for step in range(5):
        inputs, targets = batches.take(step, last=step == 4)
        np.testing.assert_array_equal(inputs, sampler.indices(step, 2, 6))
        np.testing.assert_array_equal(targets, inputs + 1)
        batches.settle()
        assert len(dataset.reads) == min(step + 2, 5)
    assert len(dataset.threads) == 1
    assert threading.get_ident() not in dataset.threads


def test_the_caller_goes_on_while_the_next_is_read() -> None:
    dataset = Recorded()
    batches, sampler = made(dataset)
    batches.take(0, last=True)
    dataset.gate.clear()
    batches._begin(1)
    assert len(dataset.reads) == 1
    dataset.gate.set()
    inputs, _ = batches.take(1, last=True)
    np.testing.assert_array_equal(inputs, sampler.indices(1, 2, 6))


def test_another_step_than_was_read_ahead() -> None:
    dataset = Recorded()
    batches, sampler = made(dataset)
    batches.take(0, last=False)
    inputs, _ = batches.take(3, last=True)  # a checkpoint was loaded
    np.testing.assert_array_equal(inputs, sampler.indices(3, 2, 6))


def test_an_error_comes_with_its_step() -> None:
    dataset = Recorded()
    batches, sampler = made(dataset)
    dataset.bad = set(sampler.indices(2, 2, 6).tolist())
    batches.take(0, last=False)
    batches.take(1, last=False)
    with pytest.raises(ValueError, match="one of"):
        batches.take(2, last=False)
    batches.take(0, last=True)
