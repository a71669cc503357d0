"""What decides the bits of a run besides its config: noted in checkpoints, and compared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_checks import AVAILABLE, EMULATED, VECTOR_PATHS

from plait import Mesh, data, models, optim
from plait.backend import kernels
from plait.comm.alone import Alone
from plait.errors import UserError
from plait.nn import LayerSpec
from plait.train import numerics
from plait.train.digest import state_digest
from plait.train.state_check import StateChanged, StateCheck
from plait.train.trainer import Trainer


def trainer(folder: Path, precision: Any = "float32", other_bits: bool = False) -> Trainer:
    return Trainer(
        models.mlp(hidden_dim=4, input_shape=(2, 2, 1), classes=3),
        data.synthetic(samples=20, input_shape=(2, 2, 1), classes=3),
        mesh=Mesh(comm=Alone()),
        optimizer=optim.AdamW(),
        batch=4,
        run=folder,
        precision=precision,
        other_bits=other_bits,
    )


TOKENS = {"vocabulary": 53, "sequence_length": 19}
PATCHED = {"input_shape": (8, 6, 1), "classes": 7}
IMAGES = {"input_shape": (8, 5, 1), "classes": 7}
SIZES = {"hidden_dim": 72, "heads": 4, **TOKENS}
MODELS = {
    "gpt": (models.gpt(layers=2, dropout=0.1, **SIZES), TOKENS),
    "llama": (models.llama(layers=1, kv_heads=2, **SIZES), TOKENS),
    "resnet": (models.resnet(blocks=(1, 1), width=6, **IMAGES), IMAGES),
    "vit": (models.vit(layers=1, patch=2, hidden_dim=72, heads=4, **PATCHED), PATCHED),
}
# Begin of the digest after three steps. Where they change, other bits come of the same run: if that
# is meant, NUMERICS_VERSION goes up, and these become what they are then.
VERSION = 3
DIGESTS = {
    ("gpt", "float32"): "ba3eed35cf08d6a5",
    ("gpt", "bfloat16"): "16bc164985986266",
    ("llama", "float32"): "fa1ccafdadce17f6",
    ("llama", "bfloat16"): "33fa926e049d7033",
    ("vit", "float32"): "9b170e11b1c459c1",
    ("vit", "bfloat16"): "e5f32f08ea22aadd",
    ("resnet", "float32"): "743ee63599da0990",
    ("resnet", "bfloat16"): "3b9f829ddc9c6cad",
}


# What AMX adds in blocks.
AMX_DIGESTS = {
    ("gpt", "bfloat16"): "6d5981bccae6a3bc",
    ("vit", "bfloat16"): "48983d3c8bbbd739",
    ("llama", "bfloat16"): "41915f5f6d1a563e",
    ("resnet", "bfloat16"): "4c6ae29b4dd90fc3",
}


@pytest.mark.parametrize("path", [*AVAILABLE, EMULATED])
@pytest.mark.parametrize(("model", "precision"), DIGESTS)
def test_the_bits_are_those_of_this_version(
    model: str, precision: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, shape = MODELS[model]
    best = kernels.isa()
    kernels.set_isa(path)
    monkeypatch.setattr("plait.train.trainer.agree_on_instructions", lambda world: path)
    try:
        with Trainer(
            layers, data.synthetic(samples=64, **shape), mesh=Mesh(comm=Alone()), batch=8, seed=3,
            optimizer=optim.AdamW(weight_decay=0.1), clip=0.5, precision=precision,
        ) as each:  # fmt: skip
            for _ in each.steps(3):
                pass
            digest = state_digest(each.engine)
    finally:
        kernels.set_isa(best)
    digests = DIGESTS if path in VECTOR_PATHS else DIGESTS | AMX_DIGESTS
    expected = VERSION, digests[model, precision]
    assert (numerics.NUMERICS_VERSION, digest[:16]) == expected


def test_a_checkpoint_of_other_numerics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with trainer(tmp_path) as each:
        next(each.steps(2))
        each.save()
    numerics_version = numerics.NUMERICS_VERSION
    monkeypatch.setattr(numerics, "NUMERICS_VERSION", 99)
    with pytest.raises(UserError, match=f"numerics version {numerics_version}, here 99"):
        trainer(tmp_path)


def test_amx_is_bits_where_products_are_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {"path": VECTOR_PATHS[-1]}
    monkeypatch.setattr(
        "plait.train.trainer.agree_on_instructions", lambda world: kernels.set_isa(taken["path"])
    )
    best = kernels.isa()
    try:
        for precision in ("float32", "bfloat16"):
            taken["path"] = VECTOR_PATHS[-1]
            with trainer(tmp_path / precision, precision) as each:
                next(each.steps(3))
                each.save()
            taken["path"] = "portable"
            trainer(tmp_path / precision, precision).close()
            taken["path"] = EMULATED
            if precision == "float32":
                trainer(tmp_path / precision, precision).close()
        said = r"bfloat16 products in pairs, here in blocks \(amx_bf16\): from there on"
        with pytest.raises(UserError, match=said):
            trainer(tmp_path / "bfloat16", "bfloat16")
        with trainer(tmp_path / "bfloat16", "bfloat16", True) as each:
            next(each.steps(3))
            each.save()
        taken["path"] = VECTOR_PATHS[-1]
        said = r"bfloat16 products in blocks \(amx_bf16\), here in pairs: from there on"
        with pytest.raises(UserError, match=said):
            trainer(tmp_path / "bfloat16", "bfloat16")
    finally:
        kernels.set_isa(best)


def test_microbatches_are_bits_where_samples_mix() -> None:
    mixing = models.resnet(input_shape=(4, 4, 1), classes=3, blocks=(1,), width=4)
    plain = models.mlp(input_shape=(4, 4, 1), classes=3, hidden_dim=4)

    def of(layers: list[LayerSpec], microbatch: int | None, grains: int = 4) -> dict[str, Any]:
        mesh = Mesh(grains={"data": grains, "tensor": 1}, comm=Alone())
        return numerics.identity(mesh, layers, 8, microbatch, "float32")

    assert of(plain, 3) == of(plain, None)
    assert of(mixing, 3)["microbatches"] == "2 of 3, 1 of 2"
    assert of(mixing, None) == of(mixing, 2)
    assert numerics.changes(of(mixing, 3), of(mixing, 2)) == [
        "microbatches 2 of 3, 1 of 2, here 4 of 2"
    ]
    assert numerics.changes({}, of(plain, 3)) == []


def test_a_changed_state_names_the_checkpoint_from_before(tmp_path: Path) -> None:
    with trainer(tmp_path) as each:
        steps = each.steps(9)
        StateCheck(each.engine, 1)
        next(steps)
        path = each.save()
        next(steps)
        each.engine.master[0].view(np.uint32)[0] ^= 1
        said = rf"in step 3: the master of .*: rank 0 on host .*; {path} is from before"
        with pytest.raises(StateChanged, match=said):
            next(steps)
    with trainer(tmp_path) as each:  # as the next job does
        assert each.next_step == 1
        for _ in each.steps(4):
            pass
