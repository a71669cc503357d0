"""The loss curve of a small GPT on real text is one curve, whatever the layout."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
from engines import Array, one_rank
from harness import case

from plait import models
from plait.comm import Communicator
from plait.mesh import Mesh
from plait.optim import AdamW
from plait.train.engine import Engine, Settings, StepResult

GRAINS = {"data": 4, "tensor": 2}
STEPS, BATCH, LENGTH = 50, 8, 16
LAYOUTS = {4: [(2, 2, 1), (1, 2, 2), (2, 1, 2)], 8: [(2, 2, 2)]}


def windows() -> Array:
    """(STEPS, BATCH, LENGTH + 1) bytes of Python's own argparse, one after the other."""
    text = Path(sysconfig.get_path("stdlib"), "argparse.py").read_bytes()
    tokens = np.frombuffer(text, np.uint8)[: STEPS * BATCH * (LENGTH + 1)].astype(np.int32)
    return tokens.reshape(STEPS, BATCH, LENGTH + 1)


def curve(mesh: Mesh) -> list[StepResult]:
    specs = models.gpt(
        layers=2, hidden_dim=16, heads=2, vocabulary=256, sequence_length=LENGTH, dropout=0.1
    )
    settings = Settings(batch=BATCH, microbatch=4, precision="float32", seed=1, clip=1.0)
    engine = Engine(specs, mesh, AdamW(weight_decay=0.1), settings)
    mine = slice(engine.share.start, engine.share.stop)
    return [
        engine.step(step, 3e-3, batch[mine, :-1].copy(), batch[mine, 1:].copy())
        for step, batch in enumerate(windows())
    ]


@case((4, 8), limit=120.0, long=True)
def losses_of_fifty_steps_are_one_curve(world: Communicator) -> None:
    expected = curve(one_rank(GRAINS))
    assert expected[-1].loss < 0.8 * expected[0].loss
    for layout in LAYOUTS[world.size]:
        found = curve(Mesh(*layout, grains=GRAINS, comm=world))
        wrong = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
        assert not wrong, f"{layout}: step {wrong[0]}: {found[wrong[0]]} != {expected[wrong[0]]}"
