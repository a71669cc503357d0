"""The example's own ops and layer: the same gradients and steps at four ranks as at one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from cases_gradients import compare
from engines import gpt_batch, gradients, one_rank, run
from harness import case

from plait.comm import Communicator
from plait.mesh import Mesh
from plait.optim import AdamW
from plait.train.engine import Settings

GRAINS = {"data": 5, "tensor": 2}


@case(4)
def own_layer_is_the_same_at_every_layout(world: Communicator) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
    specs = importlib.import_module("own_layer").model(
        vocabulary=101, sequence_length=13, hidden_dim=20, layers=2
    )
    batch = gpt_batch(6)
    for precision in ("float32", "bfloat16"):
        plain = Settings(batch=6, microbatch=6, precision=precision, seed=3)
        for optimizer, steps in ((None, 1), (AdamW(), 4)):
            engine, expected = run(specs, batch, one_rank(GRAINS), plain, optimizer, steps)
            want = gradients(engine, one_rank(GRAINS).world)
            assert want is not None
            assert all(want[f"blocks.1.{name}"].any() for name in ("a", "gain"))
            for layout, microbatch in (((2, 2, 1), 3), ((1, 2, 2), 1)):  # a leaf spans two of each
                changed = Settings(
                    batch=6, microbatch=microbatch, precision=precision, seed=3,
                    sequence_parallel=microbatch == 1,
                )  # fmt: skip
                mesh = Mesh(*layout, grains=GRAINS, comm=world)
                engine, results = run(specs, batch, mesh, changed, optimizer, steps)
                name = f"{layout} {precision} {steps} steps"
                compare(name, gradients(engine, world), want)
                assert results == expected, name
