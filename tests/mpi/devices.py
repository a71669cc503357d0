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

from plait import backend
from plait.comm import Communicator, for_device, peer

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "fibers"), str(TESTS / "unit")]
import fake_cupy as fake_cupy  # noqa: E402
import fake_device  # noqa: E402
import kernel_backends  # noqa: E402

REAL = importlib.util.find_spec("plait._cuda") is not None
SHARED = [True] if REAL else [True, False]  # whether the ranks can share a GPU, or have one each


@cache
def fibers() -> Any:
    return kernel_backends.fibers()


@contextmanager
def gpus(
    world: Communicator, shared: bool, staging: int = 1 << 14, room: int = 1 << 20, **pretended: Any
) -> Iterator[None]:
    """The CUDA backend in use on every rank, with little memory for peers. pretended: what the GPUs
    of fibers say of themselves besides."""
    before = peer.STAGING, for_device.ROOM
    peer.STAGING, for_device.ROOM = staging, room
    peer.TUNING.update(once_bytes=2048, block_bytes=512)  # so that arrays of a test are large
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
        peer.STAGING, for_device.ROOM = before
        peer.TUNING.clear()
