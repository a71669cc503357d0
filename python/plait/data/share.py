"""Rank 0 builds, every rank reads: the same files where it can see them, else copies of them.

A node that does not see rank 0's files is sent them once, in chunks; one of its ranks writes
them into its own cache and the others map that copy.
"""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.bundle import Bundle
from plait.data.cache import key_of, obtain
from plait.data.dataset import Comm
from plait.errors import UserError

_CHUNK_BYTES = 1 << 25


def build_once(comm: Comm | None, build: Callable[[], Bundle]) -> Bundle:
    """Collective: build() on rank 0, and a bundle of local files with its content on each rank.

    What build raises on rank 0 is raised on every rank: UserError as it is, anything else as
    a RuntimeError that names it. UserError where a rank cannot get the files.
    """
    if comm is None or comm.size == 1:
        return build()
    bundle = _agree(comm, build)
    host = socket.gethostname()
    for one_per_host in (True, False):  # ranks of a host name may yet differ in what they see
        waiting = comm.all_gather_object(None if bundle.visible() else host)
        writers = _writers(waiting, one_per_host)
        if not writers:
            return bundle
        copy = _send(comm, bundle, writing=comm.rank in writers)
        offers = comm.all_gather_object(copy)
        if waiting[comm.rank] is not None:
            seen = [offer for offer in offers if offer is not None and offer.visible()]
            bundle = seen[0] if seen else bundle
    waiting = comm.all_gather_object(None if bundle.visible() else host)
    missing = {each for each in waiting if each is not None}
    if missing:
        raise UserError(f"prepared data cannot be read back on {', '.join(sorted(missing))}")
    return bundle


def all_raise(comm: Comm | None, error: str | None) -> None:
    """Collective: if any rank has an error, every rank raises the first one as UserError."""
    errors = [error] if comm is None else comm.all_gather_object(error)
    first = next((text for text in errors if text is not None), None)
    if first is not None:
        raise UserError(first)


def _agree(comm: Comm, build: Callable[[], Bundle]) -> Bundle:
    """build() on rank 0, its bundle or its error on every rank."""
    outcome: Bundle | tuple[str, str] | None = None
    cause: Exception | None = None
    if comm.rank == 0:
        try:
            outcome = build()
        except Exception as error:
            cause = error
            kind = "UserError" if isinstance(error, UserError) else type(error).__name__
            outcome = (kind, str(error))
    outcome = comm.broadcast_object(outcome, root=0)
    if isinstance(outcome, Bundle):
        return outcome
    if cause is not None:
        raise cause
    assert outcome is not None
    kind, text = outcome
    raise UserError(text) if kind == "UserError" else RuntimeError(f"rank 0: {kind}: {text}")


def _writers(waiting: list[str | None], one_per_host: bool) -> list[int]:
    ranks = [rank for rank, host in enumerate(waiting) if host is not None]
    return [rank for rank in ranks if not one_per_host or waiting.index(waiting[rank]) == rank]


def _send(comm: Comm, bundle: Bundle, writing: bool) -> Bundle | None:
    """Collective: rank 0 sends every file; a writing rank keeps them in its cache.

    A writer that fails (a full disk) still takes its part in every broadcast, then all raise.
    """
    copy, error, streamed = None, None, False

    def write(folder: Path) -> dict[str, Any]:
        nonlocal streamed
        if streamed:  # the other ranks will not send it again
            raise UserError(
                "the disk refused a copy of the data after it had been received; set "
                "XDG_CACHE_HOME to a folder with room"
            )
        with ExitStack() as stack:
            sinks = {}
            for name, (_, size) in bundle.files.items():
                sinks[name] = stack.enter_context(open(folder / name, "xb"))
                if size:  # all room is taken before the first byte is sent
                    os.posix_fallocate(sinks[name].fileno(), 0, size)
            streamed = True
            _stream(comm, bundle, sinks)
        return {}

    if writing:
        try:
            copy = obtain(key_of("copy", bundle.digest), write)
        except (UserError, OSError) as failure:
            error = f"{socket.gethostname()}: {failure}"
    if not streamed:
        _stream(comm, bundle, {})
    all_raise(comm, error)
    return copy and Bundle(copy.files, bundle.meta, bundle.digest, bundle.fingerprint)


def _stream(comm: Comm, bundle: Bundle, sinks: dict[str, BufferedWriter]) -> None:
    failure: OSError | None = None
    for name in sorted(bundle.files):
        path, size = bundle.files[name]
        with open(path, "rb") if comm.rank == 0 else nullcontext() as source:
            for start in range(0, size, _CHUNK_BYTES):
                block = np.empty(min(_CHUNK_BYTES, size - start), np.uint8)
                if source is not None and source.readinto(block.data) != len(block):
                    raise UserError(f"{path} became shorter while it was sent")
                comm.broadcast(block, root=0)
                try:
                    if name in sinks and failure is None:
                        sinks[name].write(block.data)
                except OSError as error:
                    failure = error
    if failure is not None:
        raise UserError(f"cannot keep a copy of the data: {failure.strerror or failure}")
