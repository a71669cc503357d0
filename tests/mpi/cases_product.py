"""The product of all settings that decide what a rank does in a step, at all layouts; two steps
each. And a GPT of several odd sizes at all layouts.

Left out is what provably does the same: ZeRO over one replica and sequence parallel over one tensor
rank, which are identities, and of several microbatch sizes and schedules those that give every rank
the same samples in the same order. A run's threads, transport and stop are not multiplied: each row
has one of their combinations, by its hash. They do not meet the other settings in code (kernels,
collectives, checkpoints have tests of their own); every pair with them is in cases_bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from zlib import crc32

from bench import STOPS, Bench, How, named_transports
from engines import factorisations
from harness import case
from trainings import GRAINS, Training

from plait.comm import Communicator, Leaves
from plait.ops.position import Share
from plait.parallel.schedule import SCHEDULES
from plait.train.microbatch import auto_microbatch

RANKS = (1, 2, 3, 4, 6, 8)


def order(training: Training, how: How) -> str:
    """Which samples every rank of a layout passes at once, and what it does in which order."""
    data, _, stages = how.layout
    size = how.microbatch or auto_microbatch(training.specs, training.batch, data, stages)
    leaves = Leaves.even(GRAINS[0], data)
    shares = [Share(training.batch, leaves, rank, size).microbatches(0, 0) for rank in range(data)]
    actions = SCHEDULES[how.schedule]
    turns = [[actions(stage, stages, len(share)) for stage in range(stages)] for share in shares]
    return repr((shares, turns))


def orders(training: Training, layout: tuple[int, int, int]) -> list[How]:
    """One How of each order that microbatches and schedules can give."""
    sizes = (None,) if training.model == "resnet" else (None, 1, 3, 5, 13)
    found = {}
    for size, schedule in product(sizes, SCHEDULES):
        how = How(layout, size, schedule)
        found.setdefault(order(training, how), how)
    return list(found.values())


def hows(training: Training, layout: tuple[int, int, int]) -> Iterator[How]:
    data, tensor, _ = layout
    zero = (0, 1) if data > 1 else (0,)
    parallel = (False, True) if training.model in ("gpt", "vit") and tensor > 1 else (False,)
    for how in orders(training, layout):
        for recompute, level, cut in product(("none", "layer"), zero, parallel):
            yield replace(how, recompute=recompute, zero=level, sequence_parallel=cut)


def somehow(training: Training, how: How) -> How:
    """With threads, transport and stop that look random."""
    ranks = how.layout[0] * how.layout[1] * how.layout[2]
    ways = list(product((1, 2), named_transports(ranks), STOPS))
    threads, transport, stop = ways[crc32(repr((training, how)).encode()) % len(ways)]
    return replace(how, threads=threads, transport=transport, stop=stop)


def run_product(world: Communicator, model: str) -> None:
    bench = Bench(world)
    for layout, precision in product(factorisations(world.size), ("float32", "bfloat16")):
        training = Training(model, precision, 4, steps=2)
        rows = [somehow(training, how) for how in hows(training, layout)]
        for how in sorted(rows, key=lambda how: how.transport):
            bench.check(replace(training, layers=how.layers), how)


@case(RANKS, limit=1800.0, long=True)
def every_gpt(world: Communicator) -> None:
    run_product(world, "gpt")


@case(RANKS, limit=900.0, long=True)
def every_mlp(world: Communicator) -> None:
    run_product(world, "mlp")


@case(RANKS, limit=1800.0, long=True)
def every_vit(world: Communicator) -> None:
    run_product(world, "vit")


@case(RANKS, limit=600.0, long=True)
def every_resnet(world: Communicator) -> None:
    run_product(world, "resnet")


SIZES = (  # hidden, vocabulary, sequence, batch
    (8, 7, 1, 8),
    (24, 97, 7, 11),
    (56, 131, 31, 17),
    (104, 1009, 37, 9),
    (136, 65, 2, 23),
)


@case(RANKS, limit=900.0, long=True)
def gpts_of_odd_sizes(world: Communicator) -> None:
    """Four steps: heads of 1 to 17 numbers, fewer words and positions than ranks, primes."""
    bench = Bench(world)
    for layout, (hidden, vocabulary, sequence, batch) in product(factorisations(world.size), SIZES):
        sizes = {"hidden_dim": hidden, "vocabulary": vocabulary, "sequence_length": sequence}
        for precision in ("float32", "bfloat16"):
            training = Training("gpt", precision, 4, batch, 4, tuple(sizes.items()))
            ways = list(hows(training, layout))
            how = somehow(training, ways[crc32(repr((training, layout)).encode()) % len(ways)])
            bench.check(replace(training, layers=how.layers), how)
