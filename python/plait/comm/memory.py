"""The memory that the ranks of a node share: every rank's arena, mapped by all of them.

The file descriptors of the arenas travel over Unix sockets in the abstract namespace: no path, no
limit of /dev/shm. The sockets stay open, and tell when a peer is gone.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import uuid
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from plait.backend.host import kernels

if TYPE_CHECKING:
    from mpi4py import MPI

_ADDRESSES = 1 << 45  # bytes of address space for the arenas of all ranks, a quarter of a process's
_SECONDS = 60.0  # to wait for a peer's connection
_HELLO = struct.Struct("=i")
_CREDENTIALS = struct.Struct("=3i")  # pid, uid, gid


class NodeMemory:
    """arena: this rank's; mappings: by node rank, None for its own."""

    def __init__(self, arena: Any, mappings: list[Any], sockets: list[socket.socket | None]):
        self.arena, self.mappings, self._sockets = arena, mappings, sockets
        weakref.finalize(self, _close, sockets).atexit = False

    @staticmethod
    def connect(node: MPI.Intracomm) -> NodeMemory | None:
        """Shares arenas among the ranks of `node`; None on all of them if one could not."""
        found, trouble = None, None
        # Address space for each arena; memory is taken as it is used.
        reserve = min(
            _ADDRESSES // node.size & -4096,
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        )
        address = f"\0plait-{uuid.uuid4().hex}"
        try:
            arena = kernels.Arena(reserve)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(address)
            listener.listen(node.size)
        except (OSError, ValueError) as error:
            trouble = error
        addresses = node.allgather(None if trouble else address)
        if None in addresses:
            return None
        with listener:
            try:
                found = _exchange(node.rank, addresses, listener, arena, reserve)
            except (OSError, ValueError) as error:
                trouble = error
        return None if any(node.allgather(trouble is not None)) else found

    def gone(self, node_rank: int) -> bool:
        """Whether the process of this rank has ended."""
        peer = self._sockets[node_rank]
        if peer is None:
            return False
        poll = select.poll()
        poll.register(peer, select.POLLRDHUP)
        return bool(poll.poll(0))


def _close(sockets: Iterable[socket.socket | None]) -> None:
    for each in sockets:
        if each is not None:
            each.close()


def _exchange(
    rank: int, addresses: list[str], listener: socket.socket, arena: Any, reserve: int
) -> NodeMemory:
    """Every rank calls those below it and is called by those above it."""
    mappings: list[Any] = [None] * len(addresses)
    sockets: list[socket.socket | None] = [None] * len(addresses)
    for peer in range(rank):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_SECONDS)
        connection.connect(addresses[peer])
        _send(connection, rank, arena.fd)
        sockets[peer], (_, mappings[peer]) = connection, _receive(connection, reserve)
    listener.settimeout(_SECONDS)
    for _ in range(rank + 1, len(addresses)):
        connection, _ = listener.accept()
        connection.settimeout(_SECONDS)
        peer, mapping = _receive(connection, reserve)
        _send(connection, rank, arena.fd)
        sockets[peer], mappings[peer] = connection, mapping
    return NodeMemory(arena, mappings, sockets)


def _send(connection: socket.socket, rank: int, fd: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    connection.sendmsg([_HELLO.pack(rank)], rights)


def _receive(connection: socket.socket, reserve: int) -> tuple[int, Any]:
    """The peer's rank and its arena, mapped. Refuses processes of other users."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    if user != os.geteuid():
        raise PermissionError(f"a process of user {user} called for shared memory")
    message, ancillary, _, _ = connection.recvmsg(
        _HELLO.size, socket.CMSG_SPACE(_HELLO.size), socket.MSG_CMSG_CLOEXEC
    )
    if len(message) != _HELLO.size or not ancillary:
        raise ConnectionError("a peer closed its connection")
    (fd,) = struct.unpack("=i", ancillary[0][2][: _HELLO.size])
    try:
        return _HELLO.unpack(message)[0], kernels.Mapping(fd, reserve)
    finally:
        os.close(fd)
