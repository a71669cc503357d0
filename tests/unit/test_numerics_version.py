"""What decides the bits of a run besides its config: noted in checkpoints, and compared."""

from pathlib import Path
from typing import Any

import pytest

from plait import Mesh, data, models, optim
from plait.backend import kernels
from plait.comm.alone import Alone
from plait.errors import UserError
from plait.nn import LayerSpec
from plait.train import numerics
from plait.train.trainer import Trainer


def trainer(folder: Path) -> Trainer:
    return Trainer(
        models.mlp(hidden_dim=4, input_shape=(2, 2, 1), classes=3),
        data.synthetic(samples=20, input_shape=(2, 2, 1), classes=3),
        mesh=Mesh(comm=Alone()),
        optimizer=optim.AdamW(),
        batch=4,
        run=folder,
    )


def test_a_checkpoint_of_other_numerics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with trainer(tmp_path) as each:
        next(each.steps(2))
        each.save()
    numerics_version = numerics.NUMERICS_VERSION
    monkeypatch.setattr(numerics, "NUMERICS_VERSION", 99)
    best = kernels.isa()
    kernels.set_isa("portable")
    try:
        with pytest.raises(UserError) as error:
            trainer(tmp_path)
    finally:
        kernels.set_isa(best)
    said = str(error.value)
    assert f"numerics version {numerics_version}, here 99" in said
    assert best == "portable" or f"instructions {best}, here portable" in said


def test_microbatches_are_bits_where_samples_mix() -> None:
    mixing = models.resnet(input_shape=(4, 4, 1), classes=3, blocks=(1,), width=4)
    plain = models.mlp(input_shape=(4, 4, 1), classes=3, hidden_dim=4)

    def of(layers: list[LayerSpec], microbatch: int | None, grains: int = 4) -> dict[str, Any]:
        mesh = Mesh(grains={"data": grains, "tensor": 1}, comm=Alone())
        return numerics.identity(mesh, layers, 8, microbatch)

    assert of(plain, 3) == of(plain, None)
    assert of(mixing, 3)["microbatches"] == "2 of 3, 1 of 2"
    assert of(mixing, None) == of(mixing, 2)
    assert numerics.changes(of(mixing, 3), of(mixing, 2)) == [
        "microbatches 2 of 3, 1 of 2, here 4 of 2"
    ]
    assert numerics.changes({}, of(plain, 3)) == []
