"""examples/digits.toml for some steps through the Trainer: it learns, and every layout of two ranks
ends with the very loss of one rank."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from harness import case

from plait import data
from plait.comm import Communicator
from plait.comm.alone import Alone
from plait.data import Dataset
from plait.mesh import Mesh
from plait.train.build import build_dataset, build_model, make_trainer
from plait.train.config import Config, load

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits.toml"
STEPS = 40


def digits(config: Config) -> Dataset:
    """scikit-learn's digits; where it is not installed, ten blurred patterns of the same size."""
    if importlib.util.find_spec("sklearn") is not None:
        return build_dataset(config)
    random = np.random.default_rng(0)
    patterns = random.standard_normal((10, 8, 8, 1))
    labels = random.integers(0, 10, 1797)
    images = (patterns[labels] + random.standard_normal((1797, 8, 8, 1))).astype(np.float32)
    held = np.arange(1797) % 5 == 4
    return data.arrays(images[~held], labels[~held], held_out=(images[held], labels[held]))


def train(mesh: Mesh) -> tuple[list[float], float]:
    """The loss of every step, and the accuracy on what is held out."""
    config = load(EXAMPLE, [f"train.steps={STEPS}"])
    dataset = digits(config)
    dataset.prepare(mesh.world)
    trainer = make_trainer(config, build_model(config, dataset), dataset, mesh, None)
    losses = [step.loss for step in trainer.steps(STEPS)]
    return losses, trainer.evaluate().accuracy


@case(2, limit=240.0)
def the_digits_are_learnt_alike_at_every_layout(world: Communicator) -> None:
    expected, accuracy = train(Mesh(comm=Alone()))
    assert expected[0] > 2.0, expected[0]
    assert np.mean(expected[-5:]) < 0.2, expected
    assert accuracy > 0.9, accuracy
    for layout in [(2, 1, 1), (1, 2, 1), (1, 1, 2)]:
        found = train(Mesh(*layout, comm=world))
        assert found == (expected, accuracy), f"{layout}: {found} != {expected}, {accuracy}"
