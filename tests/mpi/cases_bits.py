"""Twenty steps have the same bits, whatever the settings that may not change them: every pair of
those settings, on each rank count."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from bench import STOPS, Bench, How, make_trainer, named_transports, run
from engines import factorisations, one_rank
from harness import case
from pairwise import Factors, Setting, pairwise
from trainings import GRAINS, Training

from plait.backend import kernels
from plait.comm import Communicator

# With many ranks there are many layouts: fewer settings, for the others up to 4 do.
MODELS = {6: ("gpt", "resnet"), 8: ("gpt", "mlp")}


def factors(ranks: int) -> Factors:
    transports = [name for name in named_transports(ranks) if ranks <= 4 or name != "mpi"]
    return {
        "layout": factorisations(ranks),
        "model": MODELS.get(ranks, ("gpt", "resnet", "vit", "mlp")),
        "precision": ("float32", "bfloat16"),
        # of 13 samples: 3 and 5 leave a rest
        "microbatch": (None, 3, 5, 13) if ranks <= 4 else (None, 5),
        "schedule": ("one_f_one_b", "gpipe"),
        "recompute": ("none", "layer"),
        "zero": (0, 1),
        "sequence_parallel": (False, True),
        "threads": (1, 2) if ranks <= 4 else (1,),
        "transport": sorted(transports, reverse=True),
        "stop": STOPS,
    }


def excluded(one: Setting, other: Setting) -> bool:
    """Whether two settings cannot occur together: a given microbatch is part of batch norm's
    numerics, and only sequences can be cut along the sequence."""
    if one == ("model", "resnet") and other[0] == "microbatch":
        return other[1] is not None
    return one in (("model", "resnet"), ("model", "mlp")) and other == ("sequence_parallel", True)


def split(row: dict[str, Any]) -> tuple[Training, How]:
    """What decides the bits, and what may not."""
    rest = dict(row)
    model, precision, how = rest.pop("model"), rest.pop("precision"), How(**rest)
    return Training(model, precision, how.layers), how


@case(1)
def two_threads_share_the_work(world: Communicator) -> None:
    """Of every model, so that threads are not 2 in name only: the second wakes up many times."""
    for model in ("gpt", "resnet", "vit"):  # an MLP this small has no work for two
        before = sleeps()
        kernels.set_threads(2)
        (second,) = sleeps().keys() - before.keys()
        mesh = one_rank({"data": GRAINS[0], "tensor": GRAINS[1]})
        with make_trainer(Training(model, "float32"), How((1, 1, 1)), mesh, None) as one:
            start = sleeps()[second]
            run(one, 1)
            assert sleeps()[second] - start >= 5, (model, sleeps()[second] - start)
        kernels.set_threads(1)


def sleeps() -> dict[str, int]:
    """How often each thread of this process has gone to sleep."""
    counts = {}
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended, as readers of data do
            for line in (thread / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    counts[thread.name] = int(line.split()[1])
    return counts


@case((1, 2, 3, 4, 6, 8), limit=300.0, long=(2, 3, 6, 8))
def every_pair_of_settings(world: Communicator) -> None:
    bench = Bench(world)
    for row in pairwise(factors(world.size), excluded):
        bench.check(*split(row))
