"""Device memory that processes share: what an arena gives out, and handles of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from typing import Any

import kernel_backends
import pytest

pytestmark = pytest.mark.cuda
PAGE = 2 << 20


def cuda() -> Any:
    found = kernel_backends.kernels("cuda")
    return getattr(found, "module", found)


@pytest.fixture
def arena() -> Any:
    return cuda().DeviceArena(PAGE)


def test_an_arena(arena: Any) -> None:
    assert arena.bytes == PAGE
    assert arena.used == 0
    first, second = arena.allocate(1), arena.allocate(1000)
    assert (first.offset, second.offset) == (0, 256)
    assert second.address == arena.base + 256
    assert arena.used == 256 + 1024
    assert arena.find(second.address, 1024) == 256
    assert arena.find(arena.base + PAGE - 4, 4) == PAGE - 4
    for address, size in ((arena.base - 1, 1), (arena.base + PAGE - 4, 5), (arena.base + PAGE, 1)):
        assert arena.find(address, size) == -1
    nothing = arena.allocate(0)
    assert nothing.offset == 1280
    del first, nothing
    assert arena.allocate(257).offset == 1280  # what is free before it is too small
    assert arena.allocate(256).offset == 0


def test_what_is_free_is_joined(arena: Any) -> None:
    blocks = [arena.allocate(PAGE // 4) for _ in range(4)]
    assert arena.allocate(1) is None
    assert arena.allocate(PAGE + 1) is None
    for order in ((1, 2), (0,), (3,)):
        for each in order:
            blocks[each] = None
    assert arena.used == 0
    assert arena.allocate(PAGE).offset == 0


def test_a_block_keeps_its_arena(arena: Any) -> None:
    module, base = cuda(), arena.base
    block = arena.allocate(64)
    del arena
    another = module.DeviceArena(PAGE)
    assert another.base != base
    del block


def test_what_a_recording_uses_is_its_own(arena: Any) -> None:
    before = arena.allocate(256)
    arena.keep(True)
    first = arena.allocate(512)
    place = first.offset
    del first
    assert arena.allocate(512).offset == place  # again, inside of it
    del before  # was somebody else's
    arena.keep(False)
    others = [arena.allocate(256) for _ in range(4)]
    assert others[0].offset == 0
    assert place not in [each.offset for each in others]
    arena.keep(True)
    assert arena.allocate(512).offset == place
    arena.keep(False)


def test_what_a_recording_that_failed_took_is_free(arena: Any) -> None:
    """But for what an earlier one had, whose graph is there."""
    arena.keep(True)
    earlier = arena.allocate(512)
    place = earlier.offset
    arena.keep(False)
    del earlier
    assert arena.used == 512
    arena.keep(True)
    again, dropped, held = (arena.allocate(size) for size in (512, 256, 1024))
    assert again.offset == place
    del dropped
    arena.keep(False)
    arena.forget()
    assert arena.used == 512 + 1024
    del held
    assert arena.used == 512
    del again
    assert arena.used == 512
    assert arena.allocate(512).offset != place
    arena.forget()
    arena.keep(True)
    assert arena.allocate(512).offset == place
    arena.keep(False)


def test_sizes(arena: Any) -> None:
    module = cuda()
    assert module.DeviceArena(1).bytes == PAGE
    for wrong in (0, -5):
        with pytest.raises(ValueError, match=f"of {wrong} bytes"):
            module.DeviceArena(wrong)
    with pytest.raises(ValueError, match="cannot hold -1 bytes"):
        arena.allocate(-1)
    with pytest.raises(RuntimeError, match="cudaMalloc"):
        module.DeviceArena(1 << 60)


def test_handles_of_this_process_and_of_none(arena: Any) -> None:
    module = cuda()
    with pytest.raises(RuntimeError, match="cudaIpcOpenMemHandle"):
        module.DeviceMapping(arena.handle())
    with pytest.raises(ValueError, match="a handle has 64 bytes, not 3"):
        module.DeviceMapping(b"abc")


def test_identity() -> None:
    module = cuda()
    uuid, _, name = module.device_identity()
    assert len(uuid) == 32
    assert name
    assert module.reaches_device("0000:ff:1f.0") in (-1, 1)


def _owner(pipe: Connection) -> None:
    """A process that shows its memory until it is told to give it back."""
    module = kernel_backends.fibers()
    arena = module.DeviceArena(PAGE)
    pipe.send(arena.handle())
    pipe.recv()
    del arena
    pipe.send("gone")
    pipe.recv()


@pytest.fixture
def owner() -> Iterator[Connection]:
    here, there = Pipe()
    process = Process(target=_owner, args=(there,))
    process.start()
    yield here
    here.send("end")
    process.join(20)
    assert process.exitcode == 0


def test_memory_of_another_process_on_fibers(owner: Connection) -> None:
    module = kernel_backends.fibers()
    handle = owner.recv()
    files = len(os.listdir("/proc/self/fd"))
    mapping, count = module.DeviceMapping(handle), module.device_allocations()
    assert mapping.base
    mapping.close()
    mapping.close()
    assert module.device_allocations() == count - 1
    assert len(os.listdir("/proc/self/fd")) == files
    owner.send("give it back")
    assert owner.recv() == "gone"
    with pytest.raises(RuntimeError, match="cudaErrorInvalidResourceHandle"):
        module.DeviceMapping(handle)
