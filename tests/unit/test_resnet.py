"""A ResNet's gradients against finite differences of a float64 numpy copy; running statistics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait import checkpoint, models, optim
from plait.autograd import Tape, Tensor
from plait.comm.alone import Alone
from plait.mesh import Mesh
from plait.ops.position import Position
from plait.train.engine import Engine, Settings
from plait.train.trainer import _piece

Array = np.ndarray[Any, Any]
SHAPE, CLASSES, BATCH = (7, 6, 3), 5, 6
EPSILON = 1e-5


def make(
    microbatch: int = 3, optimizer: Any = None, stem_stride: int = 1, **settings: Any
) -> Engine:
    specs = models.resnet(
        input_shape=SHAPE, classes=CLASSES, blocks=(1, 1), width=6, stem_stride=stem_stride
    )
    mesh = Mesh(grains={"data": 3, "tensor": 2}, comm=Alone())
    keywords = {"batch": BATCH, "microbatch": microbatch, "precision": "float32", **settings}
    return Engine(specs, mesh, optimizer or optim.SGD(learning_rate=0.0), Settings(**keywords))


def batch() -> tuple[Array, Array]:
    random = np.random.default_rng(3)
    inputs = random.standard_normal((BATCH, *SHAPE)).astype(np.float32)
    return inputs, random.integers(0, CLASSES, BATCH).astype(np.int32)


def randomize(engine: Engine) -> None:
    """Random weights and biases, so that no gradient is zero by symmetry."""
    wanted, finish = engine.to_load()
    for kind, span, array in wanted:
        name = span.parameter.name
        if kind in ("master", "buffer"):
            seed = [*name.encode(), span.global_start]
            array[:] = np.random.default_rng(seed).standard_normal(len(array)) * 0.3
            if name.endswith("norm.weight") or "variance" in name:
                array += 1.5
    finish()


def values(engine: Engine, gradients: bool = False) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for bucket, weights in zip(engine.buckets, engine.master.values(), strict=True):
        source = bucket.gradient if gradients else weights
        for span in bucket.spans(slice(0, bucket.size)):
            p = span.parameter
            rows = p.true_rows if p.true_rows is not None else p.shape[0]
            whole = found.setdefault(p.name, np.zeros(rows * int(np.prod(p.shape[1:]))))
            stop = span.global_start + span.stop - span.start
            whole[span.global_start : stop] = source[span.start : span.stop]
            found[p.name] = whole
    shapes = {p.name: (p.true_rows or p.shape[0], *p.shape[1:]) for p in engine.parameters}
    return {name: x.reshape(shapes[name]) for name, x in found.items()}


class Reference:
    """The same network in float64; `statistics` holds what each batch norm saw."""

    def __init__(self, weights: dict[str, Array], training: bool = True, stem_stride: int = 1):
        self.weights, self.training, self.stem_stride = weights, training, stem_stride
        self.statistics: dict[str, tuple[Array, Array]] = {}

    def conv(self, x: Array, name: str, stride: int, row: bool) -> Array:
        w = self.weights[f"{name}.weight"]
        w = w if row else w.transpose(3, 1, 2, 0)  # (I, KH, KW, O)
        pad = w.shape[1] // 2
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        high = (x.shape[1] + 2 * pad - w.shape[1]) // stride + 1
        wide = (x.shape[2] + 2 * pad - w.shape[2]) // stride + 1
        out: Array = np.zeros((len(x), high, wide, w.shape[3]))
        for y, z in np.ndindex(*w.shape[1:3]):
            rows = slice(y, y + (high - 1) * stride + 1, stride)
            columns = slice(z, z + (wide - 1) * stride + 1, stride)
            out += padded[:, rows, columns] @ w[:, y, z]
        return out

    def norm(self, x: Array, name: str) -> Array:
        w = self.weights
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_variance"]
        if self.training:
            rows = x.reshape(-1, x.shape[-1])
            mean, variance = rows.mean(0), rows.var(0)
            self.statistics[name] = mean, variance * len(rows) / (len(rows) - 1)
        y = (x - mean) / np.sqrt(variance + EPSILON)
        result: Array = y * w[f"{name}.weight"] + w[f"{name}.bias"]
        return result

    def logits(self, x: Array) -> Array:
        x = self.norm(self.conv(x, "stem.conv", self.stem_stride, False), "stem.norm")
        x = np.maximum(x, 0)
        for group, stride in ((0, 1), (1, 2)):
            name = f"groups.{group}.0"
            y = self.norm(self.conv(x, f"{name}.conv1", stride, False), f"{name}.norm1")
            y = self.conv(np.maximum(y, 0), f"{name}.conv2", 1, True)
            y = self.norm(y, f"{name}.norm2")
            if group:
                x = self.conv(x, f"{name}.shortcut.conv", stride, False)
                x = self.norm(x, f"{name}.shortcut.norm")
            x = np.maximum(x + y, 0)
        result: Array = x.mean((1, 2)) @ self.weights["output.weight"].T
        return result

    def losses(self, x: Array, targets: Array) -> Array:
        logits = self.logits(x)
        logits = logits - logits.max(1, keepdims=True)
        result: Array = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(x)), targets]
        return result


@pytest.mark.parametrize(
    ("microbatch", "recompute", "stem_stride"),
    [
        (6, "none", 1), (3, "none", 1), (4, "none", 1), (6, "layer", 1), (3, "layer", 1),
        (4, "layer", 1), (6, "none", 2), (4, "layer", 3),
    ],
)  # fmt: skip
def test_gradients_are_the_slopes_of_the_loss(
    microbatch: int, recompute: str, stem_stride: int
) -> None:
    """Microbatches of 3 and 4 do not end where the data leaves of 2 samples do."""
    engine = make(microbatch, recompute=recompute, stem_stride=stem_stride)
    randomize(engine)
    weights = values(engine)
    inputs, targets = batch()
    result = engine.step(0, 0.0, inputs, targets)
    gradients = values(engine, gradients=True)

    def loss(changed: dict[str, Array]) -> float:
        total = 0.0
        for start in range(0, BATCH, microbatch):
            part = slice(start, start + microbatch)
            network = Reference(changed, stem_stride=stem_stride)
            total += network.losses(inputs[part].astype(np.float64), targets[part]).sum()
        return total / BATCH

    assert result.loss == pytest.approx(loss(weights), rel=1e-5)
    trained = [name for name in weights if "running" not in name]
    assert len(trained) == 19
    for name in trained:
        direction = np.random.default_rng(len(name)).standard_normal(weights[name].shape)
        slopes = []
        for step in (1e-6, -1e-6):
            slopes.append(loss({**weights, name: weights[name] + step * direction}))
        slope = (slopes[0] - slopes[1]) / 2e-6
        scale = float(np.linalg.norm(gradients[name]))
        got = float((gradients[name] * direction).sum())
        assert scale > 1e-4, name
        assert got == pytest.approx(slope, rel=1e-4, abs=1e-4 * scale), name


@pytest.mark.parametrize("recompute", ["none", "layer"])
@pytest.mark.parametrize("microbatch", [6, 4])
def test_running_statistics_move_once_a_step(microbatch: int, recompute: str) -> None:
    engine = make(microbatch, recompute=recompute)
    randomize(engine)
    before = values(engine)
    inputs, targets = batch()
    engine.step(0, 0.0, inputs, targets)
    after = values(engine)
    expected = {name: 0.9 * x for name, x in before.items() if "running" in name}
    for start in range(0, BATCH, microbatch):
        part = inputs[start : start + microbatch].astype(np.float64)
        network = Reference(before)
        network.logits(part)
        for name, (mean, variance) in network.statistics.items():
            expected[f"{name}.running_mean"] += 0.1 * mean * len(part) / BATCH
            expected[f"{name}.running_variance"] += 0.1 * variance * len(part) / BATCH
    assert len(expected) == 12
    for name, x in expected.items():
        np.testing.assert_allclose(after[name], x, rtol=1e-4, atol=1e-5, err_msg=name)
    for name in before.keys() - expected.keys():
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_evaluation_uses_running_statistics_and_changes_nothing() -> None:
    engine = make()
    randomize(engine)
    before = values(engine)
    inputs, targets = batch()
    found = engine.evaluate(Position(0, 0, 2, False), inputs[:2], targets[:2])
    assert found is not None
    expected = Reference(before, training=False).losses(inputs[:2].astype(np.float64), targets[:2])
    np.testing.assert_allclose(found[0].ravel(), expected, rtol=1e-4)
    for name, x in values(engine).items():
        np.testing.assert_array_equal(x, before[name], err_msg=name)


def test_statistics_are_buffers_and_have_no_part_in_the_norm() -> None:
    engine = make(optimizer=optim.AdamW())
    kinds = {(kind, span.parameter.name) for kind, span, _ in engine.owned()}
    assert ("buffer", "stem.norm.running_mean") in kinds
    assert ("master", "stem.norm.running_mean") not in kinds
    assert ("first", "stem.norm.running_mean") not in kinds
    assert ("first", "stem.norm.weight") in kinds
    specs = models.resnet(input_shape=SHAPE, classes=CLASSES, blocks=(1, 1), width=6)
    assert engine.parameter_count == sum(spec.parameters for spec in specs)
    inputs, targets = batch()
    result = engine.step(0, 0.0, inputs, targets)
    gradients = values(engine, gradients=True)
    squares = [float((x**2).sum()) for name, x in gradients.items() if "running" not in name]
    assert result.grad_norm == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)


def test_a_small_set_is_learnt() -> None:
    engine = make(microbatch=6, optimizer=optim.AdamW(), precision="bfloat16")
    inputs, targets = batch()
    losses = [engine.step(step, 1e-2, inputs, targets).loss for step in range(30)]
    assert losses[0] > 1.0
    assert losses[-1] < 0.05


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_what_a_layer_passes_on_is_as_long_as_its_spec_says(stem_stride: int) -> None:
    engine = make(stem_stride=stem_stride)
    x = Tensor(batch()[0])
    with Tape(Position(0, 0, BATCH, False), recording=False):
        for layer, spec in zip(engine.layers[:-1], engine.specs, strict=False):
            x = layer(x)
            assert x.array.size == BATCH * spec.output, spec.name


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"images \(height, width, channels\), not \(28, 28\)"):
        models.resnet(input_shape=(28, 28), classes=10)
    engine = make(sequence_parallel=True)
    with pytest.raises(ValueError, match="sequence_parallel cuts sequences"):
        engine.step(0, 0.0, *batch())


def test_a_checkpoint_holds_running_statistics(tmp_path: Path) -> None:
    inputs, targets = batch()
    engine, other = (make(optimizer=optim.AdamW(), precision="bfloat16") for _ in range(2))
    engine.step(0, 1e-2, inputs, targets)
    comm = Alone()
    pieces = [_piece(*entry) for entry in engine.owned()]
    folder = checkpoint.save(tmp_path, 1, pieces, comm, metadata={}, keep=1)
    wanted, finish = other.to_load()
    checkpoint.load(folder, [_piece(*entry) for entry in wanted], comm)
    finish()
    for name, x in values(engine).items():
        np.testing.assert_array_equal(values(other)[name], x, err_msg=name)
    results = [e.step(1, 1e-2, inputs, targets) for e in (engine, other)]
    assert results[0] == results[1]
