"""Communicators for arrays of the device in use: over peer memory where ranks share it, and between
nodes by NCCL, by a CUDA-aware MPI, or through host memory; so, too, where ranks of a node share no
memory. Who does not, and why, is said once, on rank 0."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

from plait import backend
from plait.comm import channel
from plait.comm.communicator import Communicator
from plait.comm.device_memory import DeviceMemory
from plait.comm.hierarchical_device import HierarchicalDevice
from plait.comm.nccl import Nccl
from plait.comm.peer import Peer
from plait.comm.staged import Staged
from plait.comm.work import progress

ROOM = 256 << 20  # bytes of a communicator of one's own for its `empty`
_SPLITS = 4  # windows there is room for besides the first


class _Progress:
    """What moves on in this process while its host waits for the device."""

    def look(self) -> None:
        progress()


_progress = _Progress()


def device_communicator(inner: Communicator) -> Communicator:
    """inner for arrays of the device, with memory of its own. Collective."""
    memory = share(inner, ROOM, 1 + _SPLITS)
    found = for_device(inner, memory)
    if found is not inner and isinstance(found, Staged):
        found.owned = memory
    return found


class DeviceAxes:
    """axes: the communicators of a mesh of ranks for arrays of the device; they share memory with
    `room` bytes on each rank for their `empty`. Collective."""

    def __init__(self, world: Communicator, axes: Mapping[str, Communicator], room: int):
        self._world, self._room = world, room
        self._memory = share(world, room, len(axes))
        self.axes = {name: for_device(comm, self._memory) for name, comm in axes.items()}

    def fits(self, room: int) -> bool:
        return room <= self._room

    def close(self) -> None:
        for comm in reversed(self.axes.values()):
            comm.close()
        if self._memory is not None:
            self._memory.close(self._world)


def share(world: Communicator, room: int, windows: int) -> DeviceMemory | None:
    """Memory that the ranks of world share, with `room` bytes on each besides that of so many
    windows; None if no two of them are on one node, or they have such memory already. Collective.
    """
    most = max(world.nodes.count(node) for node in world.nodes)
    if most == 1 or isinstance(world, Staged):
        return None
    size = min(most, channel.MOST_RANKS)
    block = int(backend.kernels.DeviceWindow.block_bytes(size, channel.STAGING))
    memory = DeviceMemory(world, room + windows * (block + 256))
    if memory.trouble and world.rank == 0:
        warnings.warn(f"arrays of the device go through host memory: {memory.text}", stacklevel=2)
    backend.watch(_progress)
    backend.note_shared(memory)
    return memory


def for_device(inner: Communicator, memory: DeviceMemory | None) -> Communicator:
    """inner for arrays of the device, over this memory where all its ranks share it; itself, if it
    takes such arrays already. Collective."""
    if isinstance(inner, Staged):
        return inner
    if inner.size == 1:
        return Staged(inner)
    return _over_peer_memory(inner, memory) or _hierarchical(inner, memory) or _between_nodes(inner)


def _over_peer_memory(inner: Communicator, memory: DeviceMemory | None) -> Peer | None:
    if memory is None or inner.size > channel.MOST_RANKS:
        return None
    keys = inner.all_gather_object(memory.key)
    if not memory.joins(keys):
        return None
    block = int(backend.kernels.DeviceWindow.block_bytes(inner.size, channel.STAGING))
    place = memory.arena.allocate(block)
    least = inner.all_reduce(np.array([int(place is not None)]), "min")
    return Peer(inner, memory, keys, place) if int(least[0]) else None


def _hierarchical(inner: Communicator, memory: DeviceMemory | None) -> HierarchicalDevice | None:
    """Where inner has several nodes, and on each of them its ranks share memory, two at least."""
    if memory is None or not 1 < len(set(inner.nodes)) < inner.size:
        return None
    inside = inner.split(inner.nodes[inner.rank], inner.rank)
    assert inside is not None
    mates = Staged(inside) if inside.size == 1 else _over_peer_memory(inside, memory)
    if not all(inner.all_gather_object(mates is not None)):
        (mates or inside).close()
        return None
    assert mates is not None
    return HierarchicalDevice(inner, memory, mates, _between_nodes(inner))


def _between_nodes(inner: Communicator) -> Communicator:
    """NCCL wants a GPU for each rank."""
    mine = backend.nccl() is not None, inner.nodes[inner.rank], backend.device_identity()
    told = inner.all_gather_object(mine)
    if all(there for there, _, _ in told) and len(set(told)) == inner.size:
        return Nccl(inner)
    from plait.comm.aware_mpi import direct  # it loads MPI

    return direct(inner) or Staged(inner)
