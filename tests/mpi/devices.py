"""GPUs for cases that need some: the machine's, which the ranks share; without one, csrc/cuda on
fibers, where every rank can have one of its own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from plait import backend
from plait.comm import Communicator, channel, for_device
from plait.comm.peer import Peer

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "fibers"), str(TESTS / "unit")]
import fake_cupy as fake_cupy  # noqa: E402
import fake_device  # noqa: E402
import kernel_backends  # noqa: E402

REAL = importlib.util.find_spec("plait._cuda") is not None
SHARED = [True] if REAL else [True, False]  # whether the ranks can share a GPU, or have one each
SMALL = {"once_bytes": 2048, "block_bytes": 512}  # thresholds at which arrays of a test are large


@cache
def fibers() -> Any:
    return kernel_backends.fibers()


@contextmanager
def gpus(
    world: Communicator, shared: bool, staging: int = 1 << 14, room: int = 1 << 20,
    tuning: dict[str, int] = SMALL, **pretended: Any,
) -> Iterator[None]:  # fmt: skip
    """The CUDA backend in use on every rank, with little memory for peers. pretended: what the GPUs
    of fibers say of themselves besides."""
    before = channel.STAGING, for_device.ROOM
    channel.STAGING, for_device.ROOM = staging, room
    channel.TUNING.update(tuning)
    try:
        if REAL:
            backend.use("cuda", world.rank)
            yield
            return
        fibers().pretend(**{"number": 0 if shared else world.rank, **pretended})
        with fake_device.device(fake_device.cpu_kernels(fibers())):
            backend.use("cuda")
            yield
    finally:
        backend.use("cpu")
        channel.STAGING, for_device.ROOM = before
        channel.TUNING.clear()


def peers(world: Communicator) -> Peer:
    found = world.split(0, world.rank)
    assert found is not None
    comm = for_device.device_communicator(found)
    assert isinstance(comm, Peer), type(comm)
    return comm


def values(rank: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """The same on whoever asks for this rank's."""
    x = np.random.default_rng([rank, *shape]).standard_normal(shape) * 100
    return x.astype(dtype)


def there(comm: Communicator, x: Any, inside: bool) -> Any:
    """x on the device: in this rank's arena, or outside of it."""
    out = comm.empty(x.shape, x.dtype) if inside else backend.empty(x.shape, x.dtype)
    backend.put(out, x)
    return out


def same(got: Any, expected: Any) -> None:
    assert backend.on_device(got)
    found = backend.to_host(got)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if found.tobytes() != expected.tobytes():
        differing = np.flatnonzero((found != expected).ravel())
        raise AssertionError((len(differing), differing[:9], found.size))
