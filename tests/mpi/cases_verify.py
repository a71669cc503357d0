"""plait verify calls equal layouts equal, and names bugs planted in one rank of one layout."""

from __future__ import annotations

import io
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from harness import case

from plait import nn, ops
from plait.autograd import Context
from plait.comm import Communicator
from plait.data.synthetic_set import SyntheticTokens
from plait.errors import UserError
from plait.ops import linear
from plait.optim import AdamW
from plait.parallel.bucket import Bucket
from plait.parallel.stage import Stage
from plait.train.config import Config, load
from plait.train.engine import Engine, StepResult
from plait.verify import verify

GPT = """
name = "verified"
model = {kind = "gpt", layers = 2, hidden_dim = 24, heads = 4, sequence_length = 7, dropout = 0.1}
data = {kind = "synthetic", vocabulary = 53, samples = 64}
train = {steps = 20, batch = 8, microbatch = 3}
optimizer = {kind = "adamw", clip = 1.0}
"""
RESNET = """
name = "verified"
model = {kind = "resnet", blocks = [1, 1], width = 6}
data = {kind = "synthetic", input_shape = [8, 5, 1], classes = 7, samples = 64}
train = {steps = 20, batch = 8, precision = "float32"}
"""

VIT = """
name = "verified"
model = {kind = "vit", layers = 2, hidden_dim = 24, heads = 4, patch = 2, dropout = 0.1}
data = {kind = "synthetic", input_shape = [6, 10, 1], classes = 7, samples = 64}
train = {steps = 20, batch = 8, microbatch = 3}
"""


def configs(text: str, layouts: list[str], *changes: str) -> list[Config]:
    with TemporaryDirectory() as folder:
        path = Path(folder, "verified.toml")
        path.write_text(text)
        return [load(path, [f"layout={layout}", *changes]) for layout in layouts]


def told(found: list[Config], steps: int = 2) -> tuple[bool, str]:
    text = io.StringIO()
    return verify(found, steps, text), text.getvalue()


@case(4, limit=120.0)
def layouts_are_found_equal(world: Communicator) -> None:
    layouts = ["1x1x1", "2x1x1", "1x2x1", "3x1x1", "1x1x3", "2x2x1", "2x1x2", "1x2x2", "1x1x1"]
    for changes in (
        ["train.recompute=layer", "layout.zero=1"],
        ["train.sequence_parallel=true", "train.precision=float32", "train.schedule=gpipe"],
    ):
        same, text = told(configs(GPT, layouts, *changes))
        assert same, text
        assert world.rank or text.count("the same bits") == len(layouts) - 1, text
    same, text = told(configs(GPT, ["2x2x1", "1x1x2", "1x2x2"]))  # a reference of several ranks
    assert same, text
    same, text = told(configs(RESNET, ["1x1x1", "2x1x1", "1x2x2", "3x1x1"]))
    assert same, text
    for changes in (["train.sequence_parallel=true"], ["train.recompute=layer", "layout.zero=1"]):
        same, text = told(configs(VIT, ["1x1x1", "2x1x1", "1x2x2", "1x1x3"], *changes))
        assert same, text
    same, text = told(
        configs(RESNET, ["1x1x1", "1x1x2"])[:1] + configs(RESNET, ["2x1x1"], "seed=1")
    )
    assert not same
    assert world.rank or "before the first step: weight of" in text, text


class Activation(nn.Layer):
    def __init__(self, build: nn.Build):
        """Has no parameters, and so needs no name of its own."""

    def __call__(self, x: Any) -> Any:
        return ops.GELU.apply(x)


def shared_names(*, vocabulary: int, sequence_length: int, hidden_dim: int) -> list[nn.LayerSpec]:
    """A model of layers that share a name: what config kind "cases_verify:shared_names" builds."""
    v, s, c = vocabulary, sequence_length, hidden_dim
    activation = nn.LayerSpec("activation", Activation, flops=s * c, output=s * c)
    return [
        nn.LayerSpec("embed", lambda build: nn.VocabEmbedding(build, v, c), output=s * c),
        *[activation] * 4,
        nn.LayerSpec("head", lambda build: nn.Head(build, c, v), flops=s * c),
    ]


@case(4, limit=60.0)
def layers_may_share_a_name(world: Communicator) -> None:
    text = GPT.replace(
        'kind = "gpt", layers = 2, hidden_dim = 24, heads = 4, sequence_length = 7, dropout = 0.1',
        'kind = "cases_verify:shared_names", hidden_dim = 24, sequence_length = 7',
    )
    for changes in (["train.recompute=layer"], ["train.schedule=gpipe"]):
        same, said = told(configs(text, ["1x1x1", "1x1x3", "2x1x2"], *changes))
        assert same, said


@case(4, limit=60.0)
def other_microbatches_of_batch_norm_are_refused(world: Communicator) -> None:
    with pytest.raises(
        UserError,
        match="into 1 of 3, 1 of 1, 1 of 3, 1 of 1 at 2x1x1, but into 2 of 3, 1 of 2 at 1x1x1",
    ):
        told(configs(RESNET, ["1x1x1", "1x1x2", "2x1x1"], "train.microbatch=3"))
    same, said = told(configs(RESNET, ["1x1x1", "1x1x2", "2x1x1"], "train.microbatch=2"))
    assert same, said


@case(2, limit=60.0)
def one_layout_is_in_memory_at_a_time(world: Communicator) -> None:
    engines: weakref.WeakSet[Engine] = weakref.WeakSet()
    alive, build = [], Engine.__init__

    def init(engine: Engine, *arguments: Any) -> None:
        alive.append(len(engines))
        engines.add(engine)
        build(engine, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "__init__", init)
        told(configs(GPT, ["1x1x2", "2x1x1", "1x2x1"]))
    assert alive == [0, 0, 0]


class Plant:
    """A bug in rank `rank` of the mesh of one layout, at work while an engine of it lives."""

    def __init__(self, layout: str, rank: int):
        self.layout, self.rank, self.here = layout, rank, False
        self.patch = pytest.MonkeyPatch()
        build = Engine.__init__

        def init(engine: Engine, specs: Any, mesh: Any, *more: Any) -> None:
            build(engine, specs, mesh, *more)
            self.here = str(mesh.layout) == layout and mesh.world.rank == rank
            if self.here:
                self.made(engine)

        self.patch.setattr(Engine, "__init__", init)
        self.made: Callable[[Engine], None] = lambda engine: None

    def wrap(self, owner: Any, name: str, change: Callable[..., Any]) -> None:
        """change(result, *arguments) is what owner.name gives in the rank with the bug."""
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **more: Any) -> Any:
            result = original(*arguments, **more)
            return change(result, *arguments) if self.here else result

        is_static = isinstance(owner.__dict__.get(name), staticmethod)
        self.patch.setattr(owner, name, staticmethod(wrapped) if is_static else wrapped)

    def named(self, *words: str, text: str = GPT, changes: tuple[str, ...] = ()) -> None:
        """verify() names it so, and nobody but the rank that has the bug."""
        try:
            same, said = told(configs(text, ["1x1x1", "2x1x1", self.layout], *changes))
        finally:
            self.patch.undo()
        assert not same
        if said:
            others = said[: said.index("OTHER BITS")]
            assert others.count("the same bits") == 1, said
            for word in words:
                assert word in said, f"{word!r} is not in\n{said}"
            lines = [line for line in said.splitlines() if line.startswith("    rank")]
            assert len(lines) == 1, said
            assert lines[0].startswith(f"    rank {self.rank} (data"), said


def parameter(engine: Engine, name: str) -> Any:
    return next(p for p in engine.parameters if p.name == name)


@case(4, limit=60.0)
def a_scaled_gradient_of_an_activation(world: Communicator) -> None:
    plant = Plant("2x2x1", 2)

    def scaled(result: Any, ctx: Context, *_: Any) -> Any:
        if "blocks.1.mlp.down" not in str(ctx.label):
            return result
        nothing, grad = result
        return nothing, grad * grad.dtype.type(1.01)

    plant.wrap(ops.RowLinear, "backward", scaled)
    plant.named("in step 1: gradient of input 1 of RowLinear (blocks.1.mlp.down", "sample 4")


@case(4, limit=60.0)
def a_scaled_gradient_of_a_weight(world: Communicator) -> None:
    plant = Plant("2x1x2", 3)

    def scaled(_: Any, weight: Any, *more: Any) -> None:
        if weight.name == "blocks.1.mlp.down.weight":
            weight.grads *= np.float32(1.001)

    plant.wrap(linear, "add_weight_grad", scaled)
    plant.named("in step 1: gradient of blocks.1.mlp.down.weight before its reduction")


@case(4, limit=60.0)
def a_missing_all_reduce_over_tensor(world: Communicator) -> None:
    plant = Plant("2x2x1", 1)

    def partial(result: Any, ctx: Context, x: Any, weight: Any, *_: Any) -> Any:
        if weight.name != "blocks.0.mlp.down.weight":
            return result
        own = x.astype(np.float32) @ weight.array.astype(np.float32)
        return own.astype(result.dtype)

    plant.wrap(ops.RowLinear, "forward", partial)
    plant.named("in step 1: output of RowLinear (blocks.0.mlp.down.weight", "sample 0")


@case(4, limit=60.0)
def a_missing_all_reduce_over_data(world: Communicator) -> None:
    plant = Plant("2x1x2", 3)
    kept: dict[Bucket, Any] = {}

    def made(engine: Engine) -> None:
        name = "blocks.1.mlp.down.weight"
        (bucket,) = (b for b in engine.buckets if name in [p.name for p in b.parameters])
        start = bucket.start

        def keep(nodes: int) -> None:
            kept[bucket] = bucket.grads[0].copy()
            start(nodes)

        plant.patch.setattr(bucket, "start", keep)

    def own(_: Any, bucket: Bucket) -> None:
        if bucket in kept:
            bucket.gradient = kept[bucket]

    plant.made = made
    plant.wrap(Bucket, "finish", own)
    plant.named("in step 1: reduced gradient of blocks.1.")


@case(4, limit=60.0)
def a_transposed_shard(world: Communicator) -> None:
    plant = Plant("2x2x1", 3)

    def transposed(engine: Engine) -> None:
        array = parameter(engine, "blocks.0.mlp.up.weight").array
        array[...] = array.T.copy().reshape(array.shape)

    plant.made = transposed
    plant.named("before the first step: weight of blocks.0.mlp.up.weight")


@case(4, limit=60.0)
def a_replica_with_a_flipped_bit(world: Communicator) -> None:
    for layout in ("4x1x1", "2x2x1"):
        plant = Plant(layout, 2)

        def flipped(result: StepResult, engine: Engine, step: int, *_: Any) -> StepResult:
            if step == 0:
                array = parameter(engine, "blocks.1.norm1.weight").array
                array.view(np.uint16)[5] ^= 1
            return result

        plant.wrap(Engine, "step", flipped)
        plant.named(
            "after step 1: weight of blocks.1.norm1.weight",
            "1 of 24 elements differ, the first at element 5:",
            "1 units in the last place",
        )


@case(4, limit=60.0)
def a_sample_used_twice(world: Communicator) -> None:
    plant = Plant("4x1x1", 1)

    def twice(result: Any, dataset: Any, indices: Any) -> Any:
        inputs, targets = (x.copy() for x in result)
        inputs[1], targets[1] = inputs[0], targets[0]
        return inputs, targets

    plant.wrap(SyntheticTokens, "batch", twice)
    plant.named("in step 1: inputs, sample 3; it is sample 2 of the step instead")


@case(4, limit=60.0)
def a_wrong_message_between_stages(world: Communicator) -> None:
    plant = Plant("2x1x2", 1)
    plant.wrap(Stage, "_receive", lambda result, *_: np.roll(result, 1, axis=0))
    plant.named("in step 1: output 0 of ResidualLayerNorm (blocks.1.norm1", "sample 0")


@case(4, limit=60.0)
def a_dropout_that_counts_samples_by_itself(world: Communicator) -> None:
    plant = Plant("2x1x2", 2)
    original = ops.Dropout.forward

    def local(result: Any, ctx: Context, x: Any, *more: Any) -> Any:
        ctx.position = replace(ctx.position, first_sample=ctx.position.first_sample - 4)
        return original(ctx, x, *more)

    plant.wrap(ops.Dropout, "forward", local)
    plant.named("in step 1: output of Dropout (embed)", "sample 4")


@case(4, limit=60.0)
def an_update_that_one_owner_leaves_out(world: Communicator) -> None:
    plant = Plant("4x1x1", 3)
    original = AdamW.update

    def left_out(optimizer: Any, *arguments: Any) -> None:
        if not plant.here:
            original(optimizer, *arguments)

    plant.patch.setattr(AdamW, "update", left_out)
    try:
        same, said = told(configs(GPT, ["1x1x1", "4x1x1"], "layout.zero=1"))
    finally:
        plant.patch.undo()
    assert not same
    assert world.rank or "parts from 1x1x1 after step 1: weight of" in said, said


@case(4, limit=60.0)
def a_loss_that_one_rank_counts_otherwise(world: Communicator) -> None:
    plant = Plant("2x2x1", 1)

    def doubled(result: StepResult, *_: Any) -> StepResult:
        return replace(result, loss=2 * result.loss)

    plant.wrap(Engine, "_update", doubled)
    plant.named("in step 1: loss", "1 of 1 elements differ, the first at element 0: 7.9", "3.9")


@case(4, limit=60.0)
def a_nan_of_one_rank(world: Communicator) -> None:
    plant = Plant("2x2x1", 2)

    def broken(result: Any, *_: Any) -> Any:
        result[0][0, 0, 0] = np.nan
        return result

    plant.wrap(ops.ColumnGELU, "forward", broken)
    plant.named(
        "in step 1: output 0 of ColumnGELU (blocks.0.mlp.up", "sample 4", "nan instead of -",
        "not all are finite",
    )  # fmt: skip


@case(4, limit=60.0)
def a_loss_that_is_nan_on_one_rank_alone(world: Communicator) -> None:
    """The others would go on."""
    plant = Plant("2x2x1", 3)
    plant.wrap(Engine, "_update", lambda result, *_: replace(result, loss=float("nan")))
    plant.named("in step 1: loss", "nan instead of 3.9")


@case(4, limit=60.0)
def an_op_that_one_rank_leaves_out(world: Communicator) -> None:
    plant = Plant("4x1x1", 1)
    original = ops.Dropout.apply

    def left_out(x: Any, *more: Any) -> Any:
        return x if plant.here else original(x, *more)

    plant.patch.setattr(ops.Dropout, "apply", left_out)
    try:
        same, said = told(configs(GPT, ["1x1x1", "4x1x1"]))
    finally:
        plant.patch.undo()
    assert not same
    words = "output of Dropout (embed), sample 2; this layout does not compute it, at rank 1"
    assert world.rank or words in said, said
