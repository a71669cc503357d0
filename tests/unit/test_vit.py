"""A ViT's gradients against the slopes of a float64 numpy copy; patches; the mean over positions
under every cut of the sequence is in tests/mpi."""

from typing import Any

import numpy as np
import pytest
from engines import Keep, gradients, one_rank, random_values, randomize
from engines import image_batch as batch_of

from plait import models, optim
from plait.autograd import Tape, Tensor
from plait.comm.alone import Alone
from plait.ops import MeanPositions, Patches, fan_in
from plait.ops.position import Position
from plait.train.engine import Engine, Settings

Array = np.ndarray[Any, Any]
SHAPE, CLASSES, BATCH, HEADS = (6, 4, 3), 5, 6, 2
SIZES: dict[str, Any] = {"layers": 2, "hidden_dim": 12, "heads": HEADS, "patch": 2}
GRAINS = {"data": 3, "tensor": 2}


def specs(**changes: Any) -> Any:
    return models.vit(input_shape=SHAPE, classes=CLASSES, **{**SIZES, **changes})


def make(optimizer: Any = None, **settings: Any) -> Engine:
    keywords = {"batch": BATCH, "microbatch": 4, "precision": "float32", **settings}
    return Engine(specs(), one_rank(GRAINS), optimizer or Keep(), Settings(**keywords))


def batch() -> tuple[Array, Array]:
    return batch_of(BATCH, SHAPE, CLASSES)


class Reference:
    """The same network in float64, from its definition: no patches are ever moved."""

    def __init__(self, weights: dict[str, Array]):
        self.w = weights

    def norm(self, x: Array, name: str) -> Array:
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return np.asarray(y * self.w[f"{name}.weight"] + self.w[f"{name}.bias"])

    def embed(self, x: Array) -> Array:
        weight = self.w["embed.patches.weight"].reshape(2, 2, 3, -1)
        rows, columns = SHAPE[0] // 2, SHAPE[1] // 2
        y = np.zeros((len(x), rows * columns, weight.shape[-1]))
        for r, c in np.ndindex(rows, columns):
            for i, j in np.ndindex(2, 2):
                y[:, r * columns + c] += x[:, 2 * r + i, 2 * c + j] @ weight[i, j]
        return np.asarray(y + self.w["embed.patches.bias"] + self.w["embed.positions.weight"])

    def attend(self, x: Array, name: str) -> Array:
        b, s, size = x.shape
        qkv = x @ self.w[f"{name}.qkv.weight"].T + self.w[f"{name}.qkv.bias"]
        q, k, v = qkv.reshape(b, s, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(size // HEADS)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        y = (p / p.sum(-1, keepdims=True)) @ v
        y = y.transpose(0, 2, 1, 3).reshape(b, s, size)
        return np.asarray(y @ self.w[f"{name}.out.weight"] + self.w[f"{name}.out.bias"])

    def mlp(self, x: Array, name: str) -> Array:
        y = x @ self.w[f"{name}.up.weight"].T + self.w[f"{name}.up.bias"]
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        return np.asarray(y @ self.w[f"{name}.down.weight"] + self.w[f"{name}.down.bias"])

    def loss(self, x: Array, targets: Array) -> float:
        y = self.embed(x.astype(np.float64))
        for block in ("blocks.0", "blocks.1"):
            y = y + self.attend(self.norm(y, f"{block}.norm1"), f"{block}.attention")
            y = y + self.mlp(self.norm(y, f"{block}.norm2"), f"{block}.mlp")
        logits = self.norm(y, "output.norm").mean(1) @ self.w["output.head.weight"].T
        peak = logits.max(1)
        losses = peak + np.log(np.exp(logits - peak[:, None]).sum(1))
        return float((losses - logits[np.arange(len(x)), targets]).mean())


@pytest.mark.parametrize("settings", [{}, {"recompute": "layer", "sequence_parallel": True}])
def test_gradients_are_the_slopes_of_the_loss(settings: dict[str, Any]) -> None:
    engine = make(**settings)
    randomize(engine)
    inputs, targets = batch()
    result = engine.step(0, 0.0, inputs, targets)
    found = gradients(engine, Alone())
    assert found is not None
    shapes = {p.name: (p.true_rows or p.shape[0], *p.shape[1:]) for p in engine.parameters}
    weights = {
        name: random_values(name, shape).astype(np.float64) for name, shape in shapes.items()
    }
    assert result.loss == pytest.approx(Reference(weights).loss(inputs, targets), rel=1e-5)
    assert found.keys() == weights.keys()
    assert len(found) == 3 + 2 * 12 + 3
    for name, gradient in found.items():
        direction = np.random.default_rng(len(name)).standard_normal(shapes[name])
        if name.endswith("qkv.bias"):
            # the keys' would be no slope: softmax does not see it
            direction[SIZES["hidden_dim"] : 2 * SIZES["hidden_dim"]] = 0
        slopes = [
            Reference({**weights, name: weights[name] + step * direction}).loss(inputs, targets)
            for step in (1e-6, -1e-6)
        ]
        scale = float(np.linalg.norm(gradient))
        assert scale > 1e-4, name
        got = float((gradient.reshape(shapes[name]) * direction).sum())
        slope = (slopes[0] - slopes[1]) / 2e-6
        assert got == pytest.approx(slope, rel=1e-4, abs=1e-4 * scale), name


def test_a_patch_is_a_row_and_its_gradient_goes_back() -> None:
    x = np.arange(2 * 6 * 4 * 3, dtype=np.float32).reshape(2, 6, 4, 3)
    with Tape(Position(0, 0, 2, True), fan_in) as tape:
        y = Patches.apply(tape.input(x), 2, Alone())
    assert y.shape == (2, 6, 12)
    np.testing.assert_array_equal(y.array[1, 3].reshape(2, 2, 3), x[1, 2:4, 2:4])
    (grad,) = tape.backward(y, y.array)
    np.testing.assert_array_equal(grad, x)


def test_the_mean_and_its_gradient() -> None:
    x = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
    with Tape(Position(0, 0, 2, True), fan_in) as tape:
        y = MeanPositions.apply(tape.input(x), Alone())
    np.testing.assert_array_equal(y.array, x.mean(1))
    (grad,) = tape.backward(y, np.full((2, 3), 10, np.float32))
    np.testing.assert_array_equal(grad, np.full(x.shape, 2, np.float32))


def test_a_small_set_is_learnt() -> None:
    engine = make(optim.AdamW(), precision="bfloat16")
    losses = [engine.step(step, 1e-2, *batch()).loss for step in range(40)]
    assert losses[0] > 1.0
    assert losses[-1] < 0.05


def test_what_a_layer_passes_on_is_as_long_as_its_spec_says() -> None:
    engine, x = make(), Tensor(batch()[0])
    with Tape(Position(0, 0, BATCH, False), recording=False):
        for layer, spec in zip(engine.layers[:-1], engine.specs, strict=False):
            x = layer(x)
            assert x.array.size == BATCH * spec.output, spec.name
    assert engine.parameter_count == sum(spec.parameters for spec in engine.specs)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"images \(height, width, channels\), not \(28, 28\)"):
        models.vit(input_shape=(28, 28), classes=10, **SIZES)
    with pytest.raises(ValueError, match=r"patches of 3 x 3 do not fill images of 6 x 4: give a"):
        specs(patch=3)
