"""Training with backend "cuda" where there is no GPU: what Python does with a device's arrays."""

from __future__ import annotations

from typing import Any

import fake_cupy
import numpy as np
import pytest
from fake_device import cpu_kernels, device

import plait
from plait import backend, data, models, optim, train
from plait.train.digest import state_digest

TEXT = data.synthetic(samples=40, vocabulary=50, sequence_length=12, seed=3)
IMAGES = data.synthetic(samples=40, input_shape=(8, 8, 3), classes=5, seed=3)

MODELS: dict[str, Any] = {
    "gpt": lambda: models.gpt(
        layers=2, hidden_dim=16, heads=2, vocabulary=50, sequence_length=12, dropout=0.1
    ),
    "llama": lambda: models.llama(
        layers=2, hidden_dim=16, heads=4, kv_heads=2, vocabulary=50, sequence_length=12
    ),
    "resnet": lambda: models.resnet(input_shape=(8, 8, 3), classes=5, blocks=(1, 1), width=4),
    "vit": lambda: models.vit(
        input_shape=(8, 8, 3), classes=5, layers=1, hidden_dim=16, heads=2, patch=4
    ),
    "mlp": lambda: models.mlp(input_shape=(8, 8, 3), classes=5, hidden_dim=8, layers=2),
}


def trained(model: str, backend: str, **changes: Any) -> tuple[str, list[float]]:
    """The digest of the state after three steps, and each loss; then the evaluation's."""
    known: dict[str, Any] = {"batch": 8, "microbatch": 3, "clip": 1.0, "seed": 5, "check_every": 2}
    trainer = train.Trainer(
        MODELS[model](),
        TEXT if model in ("gpt", "llama") else IMAGES,
        mesh=plait.Mesh(),
        optimizer=optim.AdamW(learning_rate=1e-2) if model != "mlp" else optim.SGD(),
        backend=backend,  # type: ignore[arg-type]
        **{**known, **changes},
    )
    losses = [step.loss for step in trainer.steps(3)]
    on_device = [not isinstance(x, np.ndarray) for x in trainer.engine.master.values()]
    assert all(on_device) if backend == "cuda" else not any(on_device)
    losses.append(trainer.evaluate(trainer.dataset, batches=1).loss)
    return state_digest(trainer.engine), losses


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("gpt", {}),
        ("gpt", {"precision": "float32", "zero": 1, "recompute": "layer"}),
        ("llama", {}),
        ("resnet", {}),
        ("vit", {}),
        ("mlp", {}),
    ],
)
def test_device_arrays_change_no_bits(model: str, changes: dict[str, Any]) -> None:
    """The CPU's kernels on device arrays: nothing is computed elsewhere, nothing left behind."""
    expected = trained(model, "cpu", **changes)
    with device(cpu_kernels()):
        got = trained(model, "cuda", **changes)
    assert got == expected


def test_checkpoints_cross_backends(tmp_path: Any) -> None:
    """What a device saved, the host goes on from, and the other way round, with the same bits."""

    def run(steps: int, name: str) -> str:
        # "auto": the device, where one is
        trainer = train.Trainer(
            MODELS["gpt"](), TEXT, mesh=plait.Mesh(), optimizer=optim.AdamW(), batch=8, seed=5,
            run=tmp_path / name, other_bits=True,
        )  # fmt: skip
        with trainer:
            list(trainer.steps(steps))
            trainer.save()
            return state_digest(trainer.engine)

    expected = run(2, "host")
    with device(cpu_kernels()):
        run(1, "there")
    assert run(2, "there") == expected
    run(1, "back")
    with device(cpu_kernels()):
        assert run(2, "back") == expected


def test_fingers_off() -> None:
    """The stand-in for CuPy refuses what would copy to the host unseen."""
    with device(cpu_kernels()):
        backend.use("cuda")
        x = fake_cupy.empty((2, 3), np.float32)
        with pytest.raises(TypeError, match="implicit"):
            np.asarray(x)
