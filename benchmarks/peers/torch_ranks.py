"""The ranks of a PyTorch program on one machine, over gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any


def start(work: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """work(rank, *arguments) on every rank, rank 0 being this process; those of several find where
    to meet in their environment (init_process_group("gloo", rank=..., world_size=...))."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(s.getsockname()[1]))
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=work, args=(rank, *arguments)) for rank in range(1, ranks)]
    for process in others:
        process.start()
    work(0, *arguments)
    for process in others:
        process.join()
