"""What a Trainer refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import pytest

import plait
from plait import data, models, optim, train

LAYERS = models.mlp(input_shape=(4, 4), classes=3, hidden_dim=8, layers=2)
DATA = data.synthetic(samples=20, input_shape=(4, 4), classes=3)


def trainer(**changes: Any) -> train.Trainer:
    known = {"layers": LAYERS, "dataset": DATA, "mesh": plait.Mesh(), "optimizer": optim.SGD()}
    arguments = {**known, "batch": 4, **changes}
    return train.Trainer(arguments.pop("layers"), arguments.pop("dataset"), **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, "layers is empty"),
        ({"layers": LAYERS[0]}, "layers must be a list of nn.LayerSpec"),
        ({"layers": [*LAYERS[:2], LAYERS[1], LAYERS[2]]}, "two parameters are named layers.1"),
        ({"dataset": "text.txt"}, "dataset must be a Dataset, got 'text.txt'"),
        ({"mesh": None}, "mesh must be a Mesh, got None"),
        ({"optimizer": optim.AdamW}, r"optimizer must be such as optim.AdamW\(\)"),
        ({"precision": "fp32"}, "precision must be '.*' or '.*', got 'fp32'"),
        ({"recompute": "x"}, "recompute must be 'none' or 'layer', got 'x'"),
        ({"pipeline_schedule": "x"}, "schedule must be .*, got 'x'"),
        ({"zero": 5}, "zero must be 0 or 1, got 5"),
        ({"batch": "8"}, "batch must be an integer of at least 1, got '8'"),
        ({"microbatch": 0}, "microbatch must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"clip": 0.0}, "clip must be above 0, got 0"),
        ({"grains": "foo"}, "grains must be .*, got 'foo'"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**changes)


def test_what_is_left() -> None:
    losses = [step.loss for step in trainer(microbatch=3, zero=1).steps(3)]
    assert len(losses) == 3
