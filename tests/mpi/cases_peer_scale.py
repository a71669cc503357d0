"""Collectives between the GPUs of processes, at the sizes and numbers of real use: all of it on a
GPU and with --long, else a part, on fibers. (tests/gpu/test_collectives.py has ranks as streams.)
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from cases_device import BFLOAT16
from device_ranks import leaves_of, tree_of
from devices import REAL, SHARED, gpus, peers, same, there, values
from harness import case

import plait
from plait import optim
from plait.comm import Communicator, channel
from plait.comm.for_device import device_communicator

TYPES = [np.dtype(name) for name in ("f4", BFLOAT16, "i4", "i8", "u4", "u1", "f8")]
FLOATS = TYPES[:2]  # that kernels add
MEGABYTE = 1 << 20


def numbers(rank: int, n: int, dtype: Any) -> Any:
    """As values(): the same again after a prime number of them, where nothing else begins."""
    x = values(rank, (min(n, 100_003),), np.float32)
    return np.resize((abs(x) % 250 if dtype.kind == "u" else x).astype(dtype), n)


def every_collective(world: Communicator, comm: Communicator, n: int, dtype: Any) -> None:
    """Of n elements on every rank, or n in all; the bits of the host's."""
    size, last = world.size, world.size - 1
    x, part = numbers(world.rank, n, dtype), max(1, n // size)
    cut = [n * rank // size for rank in range(size + 1)]
    own = cut[world.rank + 1] - cut[world.rank]
    received = [own * rank for rank in range(size + 1)]
    for inside in (True, False):

        def take(y: Any, inside: bool = inside) -> Any:
            return there(comm, y, inside)

        same(comm.all_reduce(take(x)), world.all_reduce(x))
        same(comm.reduce_scatter(take(x)), world.reduce_scatter(x))
        same(comm.all_gather(take(x[:part])), world.all_gather(x[:part]))
        same(comm.broadcast(take(x), last), numbers(last, n, dtype))
        same(comm.all_to_all(take(x), cut, received), world.all_to_all(x, cut, received))
        if dtype.kind == "i":
            same(comm.all_reduce(take(x), "max"), world.all_reduce(x, "max"))
        if dtype == np.float32:
            bias, nodes = numbers(9, n, dtype), x[None]
            got = comm.all_reduce_nodes(take(nodes), bias=take(bias), dtype=BFLOAT16)
            same(got, world.all_reduce_nodes(nodes, bias=bias, dtype=BFLOAT16))


def update(comm: Communicator, take: Any, n: int, dtype: Any) -> Any:
    """The weights after a step with the summed gradients."""
    own = n * (comm.rank + 1) // comm.size - n * comm.rank // comm.size
    weight, master = take(numbers(7, n, dtype)), take(np.ones(own, np.float32))
    state = {name: take(np.zeros(own, np.float32)) for name in optim.AdamW().state}
    grad = take(numbers(comm.rank, n, TYPES[0]))
    plait.reduce_update_gather(grad, weight, master, state, comm, optim.AdamW(), step=1, scale=0.01)
    return weight


def sizes(world: Communicator, bytes_: list[int], types: list[Any], room: int) -> None:
    """Of arrays of so many bytes and an element more; with the buffers of real use."""
    every = [(dtype, count // dtype.itemsize + 1) for dtype in types for count in bytes_]
    updated = [update(world, np.copy, n, dtype) for dtype, n in every if dtype in FLOATS]
    for shared in SHARED:
        with gpus(world, shared, channel.STAGING, room, {}):
            inner = world.split(0, world.rank)
            assert inner is not None
            comm = device_communicator(inner)
            way = "peer" + ", split" * shared if world.size > 1 else f"{inner.transport}, staged"
            assert comm.transport == way
            for dtype, n in every:
                every_collective(world, comm, n, dtype)
            for inside in (True, False):

                def take(x: Any, comm: Communicator = comm, inside: bool = inside) -> Any:
                    return there(comm, x, inside)

                floats = [(dtype, n) for dtype, n in every if dtype in FLOATS]
                for (dtype, n), expected in zip(floats, updated, strict=True):
                    same(update(comm, take, n, dtype), expected)
            comm.close()


@case(ranks=2, cuda=True)
def float32_from_one_element_to_a_megabyte(world: Communicator) -> None:
    sizes(world, [0, 4008, MEGABYTE], TYPES[:1], 8 * MEGABYTE)


@case(ranks=(1, 2, 4, 8), long=not REAL, limit=900.0, cuda=True)
def every_type_from_one_element_to_a_megabyte(world: Communicator) -> None:
    sizes(world, [0, 4008, MEGABYTE], TYPES, 8 * MEGABYTE)


@case(ranks=(2, 4, 8), long=not REAL, limit=900.0, cuda=True)
def sixty_four_megabytes(world: Communicator) -> None:
    """On fibers that of two ranks; on more of them float32, of 64 MB together."""
    if REAL or world.size == 2:
        sizes(world, [64 * MEGABYTE - 8], TYPES if REAL else FLOATS, 320 * MEGABYTE)
    else:
        sizes(world, [64 * MEGABYTE // world.size], TYPES[:1], 80 * MEGABYTE)


# --- one after another ----------------------------------------------------------------------------


def one_of_many(comm: Communicator, chance: random.Random, number: int) -> tuple[Any, Any]:
    """The Work of a call of any kind that all ranks choose alike, and what it must give: every rank
    knows what all of them have."""
    size, n = comm.size, chance.choice((1, 9, 200, 700, 3001))
    inside, kind = chance.random() < 0.5, chance.randrange(5)
    dtype = np.dtype(chance.choice(("f4", "i4")))
    every = [
        np.random.default_rng([number, rank]).integers(-(2**30), 2**30, n).astype(dtype)
        for rank in range(size)
    ]
    x = there(comm, every[comm.rank], inside)
    if kind == 0:
        root = chance.randrange(size)
        return comm.broadcast(x, root, blocking=False), every[root]
    if kind == 1:
        return comm.all_gather(x, blocking=False), np.concatenate(every)
    if kind == 2:
        cuts = [
            [0, *sorted(chance.randrange(n + 1) for _ in range(size - 1)), n] for _ in range(size)
        ]
        pieces = [np.split(y, cut[1:-1])[comm.rank] for y, cut in zip(every, cuts, strict=True)]
        receives = np.cumsum([0, *map(len, pieces)]).tolist()
        work = comm.all_to_all(x, cuts[comm.rank], receives, blocking=False)
        return work, np.concatenate(pieces)
    whole = (
        tree_of(every, leaves_of(size)[1], None, dtype)
        if dtype.kind == "f"
        else np.sum(every, 0, dtype)
    )
    if kind == 3:
        return comm.all_reduce(x, blocking=False), whole
    own = slice(n * comm.rank // size, n * (comm.rank + 1) // size)
    return comm.reduce_scatter(x, blocking=False), whole[own]


def mixed_calls(world: Communicator, calls: int, together: int = 40) -> None:
    """`together` of them are under way at a time."""
    for shared in SHARED:
        with gpus(world, shared):
            comm = peers(world)
            chance = random.Random(world.size)
            for first in range(0, calls, together):
                started = [
                    one_of_many(comm, chance, number)
                    for number in range(first, min(first + together, calls))
                ]
                for work, expected in started:
                    same(work.wait(), expected)
            comm.close()


@case(ranks=(2, 4), cuda=True)
def hundreds_of_mixed_calls(world: Communicator) -> None:
    mixed_calls(world, 150)


@case(ranks=(2, 4), long=not REAL, limit=900.0, cuda=True)
def ten_thousand_mixed_calls(world: Communicator) -> None:
    mixed_calls(world, 10_000)
