"""Device memory that the ranks of a node share: every rank's arena, mapped by all that can.

CUDA's own answers are not trusted: two ranks share memory if each can write into the other's, by a
kernel, what the other then finds there, and read it back.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait import backend
from plait.comm.communicator import Communicator
from plait.comm.work import Array

_PATTERN = 64  # float32 elements of a rank's slot in every arena


@dataclass(frozen=True)
class Process:
    """What a rank says of itself. key: of this memory, unlike all others; uuid, bus, name: of its
    device; size: bytes of its arena; problem: why it has no memory to share, or nothing."""

    key: str
    node: int
    host: str
    pid: int
    namespace: str
    uuid: str = ""
    bus: str = ""
    name: str = ""
    size: int = 0
    handle: bytes = b""
    problem: str = ""

    @property
    def text(self) -> str:
        return f"process {self.pid} on host {self.host}, {self.name} at {self.bus}"


class DeviceMemory:
    """arena: this rank's, None if it has none; processes: of all ranks that made this together;
    trouble: for each pair of ranks of a node that cannot share memory, why, the same on all."""

    def __init__(self, world: Communicator, room: int):
        """For `room` bytes in each rank's arena. All ranks of world call this."""
        self.arena: Any = None
        self.key = uuid.uuid4().hex
        found = world.all_gather_object(self._own(world, room))
        self.processes: tuple[Process, ...] = tuple(found)
        self._at = {each.key: rank for rank, each in enumerate(found)}
        self._mappings: dict[int, Any] = {}
        self._exits: dict[int, int] = {}
        self._closed = False
        self.left: list[Any] = []  # what was dropped while peers may have used it
        mine = self._open(world.rank)
        told = world.all_gather_object(mine)
        self._probe(world, mine, [there.get(world.rank) == "" for there in told])
        self.trouble = _pairs(world.all_gather_object(mine))
        for rank in sorted(self._mappings):
            if not self._linked(world.rank, rank):
                self._mappings.pop(rank).close()

    # --- who reaches whom ---------------------------------------------------------------------

    def joins(self, keys: Sequence[str]) -> bool:
        """Whether all of these processes share memory: the same on all ranks."""
        ranks = [self._at.get(key, -1) for key in keys]
        return min(ranks) >= 0 and all(self._linked(a, b) for a in ranks for b in ranks if a < b)

    def base(self, key: str) -> int:
        """The address here of a process's arena."""
        rank = self._at[key]
        return int(self.arena.base if key == self.key else self._mappings[rank].base)

    def process(self, key: str) -> Process:
        return self.processes[self._at[key]]

    def crowded(self, keys: Sequence[str]) -> bool:
        """Whether one of these processes shares its device with any other rank of its node: their
        kernels take turns then, and must not wait for each other."""
        devices = [(each.node, each.uuid) for each in self.processes]
        own = [(self.process(key).node, self.process(key).uuid) for key in keys]
        return any(devices.count(device) > 1 for device in own)

    @property
    def reserved(self) -> int:
        return 0 if self.arena is None else int(self.arena.bytes)

    def keep(self, on: bool) -> None:
        if self.arena is not None:
            self.arena.keep(on)

    def forget(self) -> None:
        if self.arena is not None:
            self.arena.forget()

    def gone(self, key: str) -> bool:
        """Whether a process of this node has ended."""
        rank = self._at[key]
        if rank not in self._exits:
            return False
        poll = select.poll()
        poll.register(self._exits[rank], select.POLLIN)
        return bool(poll.poll(0))

    def view(self, key: str, offset: int, shape: tuple[int, ...], dtype: Any) -> Array:
        """What lies in a process's arena there."""
        owner = self.arena if key == self.key else self._mappings[self._at[key]]
        return backend.view(self.base(key) + offset, shape, dtype, owner)

    @property
    def text(self) -> str:
        """In one line, who cannot share memory, and why; "" if all can."""
        pairs: dict[str, list[tuple[int, int]]] = {}
        for pair, cause in sorted(self.trouble.items()):
            pairs.setdefault(cause, []).append(pair)
        told = []
        for cause, (first, *others) in pairs.items():
            more = f" (and {len(others)} more pair{'s' * (len(others) > 1)})" if others else ""
            told.append(f"ranks {first[0]} and {first[1]}{more}: {cause}")
        return "; ".join(told)

    def close(self, world: Communicator) -> None:
        """Gives the arena back, and those of the peers first. All ranks call it, when no array and
        no communicator uses them any more."""
        if self._closed:
            return
        self._closed = True
        backend.wait()
        world.barrier()
        for mapping in self._mappings.values():
            mapping.close()
        self._mappings.clear()
        for fd in self._exits.values():
            os.close(fd)
        self._exits.clear()
        world.barrier()
        self.left.clear()
        self.arena = None

    def _linked(self, a: int, b: int) -> bool:
        one, other = self.processes[a], self.processes[b]
        there = one.node == other.node and not one.problem and not other.problem
        return there and (min(a, b), max(a, b)) not in self.trouble

    # --- making it ----------------------------------------------------------------------------

    def _own(self, world: Communicator, room: int) -> Process:
        kernels = backend.kernels
        about: dict[str, Any] = {
            "key": self.key,
            "node": world.nodes[world.rank],
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "namespace": os.readlink("/proc/self/ns/pid"),
        }
        try:
            device = dict(zip(("uuid", "bus", "name"), kernels.device_identity(), strict=True))
            self.arena = kernels.DeviceArena(room)
            handle = self.arena.handle()
        except (RuntimeError, ValueError) as error:
            self.arena = None
            return Process(**about, problem=f"it has no memory to share: {error}")
        return Process(**about, **device, size=self.arena.bytes, handle=handle)

    def _open(self, rank: int) -> dict[int, str]:
        """Maps the arenas of this node's other ranks; for each, "" or why that failed."""
        own, found = self.processes[rank], {}
        for peer, other in enumerate(self.processes):
            if peer == rank or other.node != own.node:
                continue
            problem = own.problem or other.problem
            if problem:
                found[peer] = problem
                continue
            before, sees = _obstacle(own, other)
            if not before:
                try:
                    self._mappings[peer] = backend.kernels.DeviceMapping(other.handle)
                except (RuntimeError, ValueError) as error:
                    before = f"{sees}{error}"
            if not before:
                self._watch(peer, own, other)
            found[peer] = before
        return found

    def _watch(self, peer: int, own: Process, other: Process) -> None:
        """Where this cannot be done, the end of a peer is noticed at the deadline only."""
        if own.namespace == other.namespace:
            with contextlib.suppress(OSError):
                self._exits[peer] = os.pidfd_open(other.pid)

    def _probe(self, world: Communicator, mine: dict[int, str], opened: list[bool]) -> None:
        """Adds to mine with whom real data do not arrive. opened: by whom this rank's arena is."""
        wrong = "what a kernel writes into the other's memory does not arrive"
        block = self.arena.allocate(world.size * _PATTERN * 8) if self.arena is not None else None
        offset = -1 if block is None else block.offset
        offsets = world.all_gather(np.array([offset], np.int64)).tolist()
        peers = [r for r, text in mine.items() if not text and opened[r] and offsets[r] >= 0]
        shape = (2, world.size, _PATTERN)  # written by the peers; what they are to read

        def slots(rank: int) -> Array:
            return self.view(self.processes[rank].key, offsets[rank], shape, np.float32)

        if block is not None:
            self.arena.clear(block.offset, block.bytes)
            for reader in range(world.size):
                backend.put(slots(world.rank)[1][reader], _pattern(world.rank, reader))
        _finish(world)
        back = {}
        for peer in peers:
            pattern = backend.to_device(_pattern(world.rank, peer))
            back[peer] = backend.empty((_PATTERN,), np.float32)
            backend.kernels.convert(pattern, slots(peer)[0][world.rank])
            backend.kernels.convert(slots(peer)[1][world.rank], back[peer])
        _finish(world)
        for peer in peers:
            wanted = _pattern(peer, world.rank)
            arrived = [backend.to_host(x) for x in (slots(world.rank)[0][peer], back[peer])]
            if any(x.tobytes() != wanted.tobytes() for x in arrived):
                mine[peer] = wrong
        for peer, text in mine.items():
            if not text and peer not in peers:
                mine[peer] = "only one of them can map the other's memory"
        _finish(world)


def _finish(world: Communicator) -> None:
    """Until the devices of all ranks have done what they were told."""
    backend.synchronize()
    world.barrier()


def _pattern(writer: int, reader: int) -> Array:
    return np.arange(_PATTERN, dtype=np.float32) + (1000 * writer + reader + 1)


def _obstacle(own: Process, other: Process) -> tuple[str, str]:
    """What stands in the way before it is tried, and what to say first if it then fails."""
    if (own.host, own.namespace, own.pid) == (other.host, other.namespace, other.pid):
        return "they are two ranks of one process", ""
    if own.namespace != other.namespace:
        hint = "they are in two PID namespaces (start their containers with --pid=host): "
    elif "MIG" in own.name or "MIG" in other.name:
        hint = f"{own.name} and {other.name} are parts of a GPU (MIG), which share no memory: "
    else:
        hint = ""
    if own.uuid == other.uuid:
        return "", hint
    reaches = backend.kernels.reaches_device(other.bus)
    if reaches == 0:
        return f"{hint}no peer access between devices {own.bus} and {other.bus}", ""
    if reaches < 0 and not hint:
        hint = (
            "their GPUs are hidden from each other (--gpus-per-task hides peers: use "
            "--gpus-per-node): "
        )
    return "", hint


def _pairs(told: list[dict[int, str]]) -> dict[tuple[int, int], str]:
    found: dict[tuple[int, int], str] = {}
    for rank, texts in enumerate(told):
        for peer, text in texts.items():
            pair = (min(rank, peer), max(rank, peer))
            if text and not found.get(pair):
                found[pair] = text
    return found
