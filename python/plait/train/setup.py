"""Before the first step of a command: threads, instruction path, grains, the memory plan."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from plait.backend import kernels
from plait.comm import Communicator
from plait.errors import UserError
from plait.nn import LayerSpec
from plait.plan import Request, memory, smallest_change
from plait.report import bytes_text, limit_bytes
from plait.train.config import Config
from plait.train.grains import auto_grains
from plait.train.microbatch import auto_microbatch
from plait.train.sections import SGD, Layout

PATHS = ("portable", "avx2", "avx512")


@contextmanager
def users_fault() -> Iterator[None]:
    """While a run is set up, a ValueError means that the input is wrong."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def ranks_here(world: Communicator) -> int:
    """How many ranks of the world share this host."""
    hosts = world.broadcast_object(world.gather_object(socket.gethostname()))
    return int(hosts.count(socket.gethostname()))


def set_threads(config: Config, local_ranks: int) -> int:
    """The threads of this rank: as the config says, or its share of the cores this process may use.

    A mask that a launcher set for this rank alone is not divided: it is smaller than the host."""
    cores = len(os.sched_getaffinity(0))
    own_mask = cores < (os.cpu_count() or 1)
    threads = config.threads or max(1, cores if own_mask else cores // local_ranks)
    kernels.set_threads(threads)
    return threads


def agree_on_instructions(world: Communicator) -> str:
    """Every rank takes the least instruction path of all, so that bits agree; returns its name."""
    best = np.array([PATHS.index(kernels.isa())], np.int64)
    path = PATHS[int(world.all_reduce(best, op="min")[0])]
    kernels.set_isa(path)
    return path


def grains_of(config: Config, specs: list[LayerSpec], layout: Layout) -> tuple[int, int]:
    grains = config.numerics.grains
    if grains == "auto":
        return auto_grains(specs, config.train.batch)
    if grains == "layout":
        return layout.data or 1, layout.tensor
    return grains.data, grains.tensor


def memory_request(config: Config, specs: list[LayerSpec], layout: Layout) -> Request:
    train, data = config.train, layout.data or 1
    return Request(
        data=data,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        batch=train.batch,
        microbatch=train.microbatch or auto_microbatch(specs, train.batch, data, layout.pipeline),
        precision=train.precision,
        zero=layout.zero,
        recompute=train.recompute,
        grains=grains_of(config, specs, layout)[0],
        state=1 if isinstance(config.optimizer, SGD) else 2,
        schedule=train.schedule,
    )


def check_memory(
    config: Config, specs: list[LayerSpec], layout: Layout, local_ranks: int
) -> tuple[int, int]:
    """(needed, limit) bytes of the rank that needs most. UserError if it does not fit."""
    request = memory_request(config, specs, layout)
    needed = memory(specs, request).total
    limit = int(config.memory * 2**30) if config.memory else limit_bytes() // local_ranks
    if limit and needed > limit:
        change = smallest_change(specs, request, limit)
        mend = f"the smallest change that fits: {change}" if change else "no layout known fits"
        raise UserError(
            f'layout = "{request.layout}" needs {bytes_text(needed)} a rank, the limit is '
            f"{bytes_text(limit)}; {mend}"
        )
    return needed, limit
