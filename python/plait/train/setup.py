"""Before the first step of a command: threads, instruction path, grains, the memory plan."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

from plait.backend.host import kernels
from plait.comm import Communicator
from plait.errors import UserError
from plait.nn import LayerSpec
from plait.plan import Request, memory, smallest_change
from plait.report import bytes_text, limit_bytes
from plait.train import fit
from plait.train.config import Config
from plait.train.grains import auto_grains
from plait.train.microbatch import auto_microbatch
from plait.train.sections import SGD, Layout

_THREADS_A_CORE = 32  # more are a slip of the finger


@contextmanager
def users_fault() -> Iterator[None]:
    """While a run is set up, a ValueError means that the input is wrong."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


@dataclass(frozen=True)
class Here:
    """ranks: of the world, on this host; cores: this rank's share of those it may use."""

    ranks: int
    cores: int


def ranks_here(world: Communicator) -> Here:
    """Who this rank shares the host with. Collective. A core counts for a rank by how many may use
    it: launchers give ranks cores of their own, or leave all of them to all."""
    host, own = socket.gethostname(), os.sched_getaffinity(0)
    masks = [mask for name, mask in world.all_gather_object((host, own)) if name == host]
    users = Counter(core for mask in masks for core in mask)
    return Here(len(masks), max(1, int(sum(Fraction(1, users[core]) for core in own))))


def set_threads(config: Config, here: Here) -> int:
    """The threads of this rank: as the config says, or one for each core of its share."""
    check_threads(config)
    threads = config.threads or here.cores
    kernels.set_threads(threads)
    return threads


def check_threads(config: Config) -> None:
    """Raises UserError for so many that the system may refuse them."""
    cores = os.cpu_count() or 1
    if config.threads > cores * _THREADS_A_CORE:
        raise UserError(
            f"threads = {config.threads} is more than {_THREADS_A_CORE} for each of the {cores} "
            f"cores of host {socket.gethostname()}: leave threads out, or give at most {cores}"
        )


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


def check_grains(
    specs: list[LayerSpec], layout: Layout, grains: tuple[int, int], batch: int
) -> None:
    """Refuses, with ValueError, what the mesh and the layers would; says what fits."""
    plan = fit.Plan(layout.data or 1, layout.tensor, layout.pipeline, batch, grains)
    fit.check(plan, heads_of(specs))


def heads_of(specs: list[LayerSpec]) -> list[tuple[str, int]]:
    return [(spec.name, spec.tensor_units) for spec in specs if spec.tensor_units]


def check_memory(
    config: Config, specs: list[LayerSpec], layout: Layout, here: Here | int, device: int = 0
) -> tuple[int, int]:
    """(needed, limit) bytes of the rank that needs most; here, or how many ranks share the host;
    device: bytes of device memory for a rank, 0 on the CPU. UserError if it does not fit."""
    request = memory_request(config, specs, layout)
    local = here if isinstance(here, int) else here.ranks
    needed = memory(specs, request).total
    whole = limit_bytes()
    limit = int(config.memory * 2**30) if config.memory else device or whole // local

    def limit_of(changed: Request) -> int:
        wanted = Layout(data=changed.data, tensor=changed.tensor, pipeline=changed.pipeline)
        try:
            check_grains(specs, wanted, grains_of(config, specs, wanted), changed.batch)
        except ValueError:
            return 0
        one_host = not config.memory and local == request.ranks
        return whole // changed.ranks if one_host and not device else limit

    if limit and needed > limit:
        change = smallest_change(specs, request, limit_of)
        mend = (
            f"the smallest change that fits: {change}"
            if change
            else "no change known fits: use more hosts, or a smaller model or train.batch"
        )
        raise UserError(
            f'layout = "{request.layout}" needs {bytes_text(needed)} a rank, the limit is '
            f"{bytes_text(limit)}; {mend}"
        )
    return needed, limit
