"""Many steps: losses, weights and optimizer state at every layout equal those of one rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from engines import Array, factorisations, gpt, gpt_batch, image_batch, one_rank, run
from harness import case

import plait.train.digest
from plait import models
from plait.autograd import Observer
from plait.comm import Communicator
from plait.mesh import Mesh
from plait.nn import Build, LayerSpec
from plait.ops.parameter import Init
from plait.ops.position import Position
from plait.optim import SGD, AdamW
from plait.train.digest import state_digest
from plait.train.engine import Engine, Settings

GRAINS = {"data": 4, "tensor": 2}
LAYOUTS: dict[int, list[tuple[int, int, int]]] = {
    2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)],
    3: [(3, 1, 1), (1, 1, 3)],
    4: [(2, 2, 1), (1, 2, 2), (2, 1, 2), (4, 1, 1)],
    8: [(2, 2, 2), (4, 2, 1)],
}


def state(engine: Engine, world: Communicator) -> dict[tuple[str, str, int], bytes] | None:
    mine = [
        ((kind, span.parameter.name, span.global_start), array.tobytes())
        for kind, span, array in engine.owned()
    ]
    everyone = world.gather_object(mine)
    return None if everyone is None else dict(sorted(x for rank in everyone for x in rank))


def join(pieces: dict[tuple[str, str, int], bytes]) -> dict[tuple[str, str], bytes]:
    found: dict[tuple[str, str], bytes] = {}
    for (kind, name, _), part in sorted(pieces.items()):
        found[kind, name] = found.get((kind, name), b"") + part
    return found


def compare(
    world: Communicator, specs: list[LayerSpec], batch: tuple[Array, Array], optimizer: Any,
    steps: int, layouts: list[tuple[int, int, int]] | None = None, **changes: Any,
) -> dict[tuple[str, str], bytes]:  # fmt: skip
    """Trains at every layout and on one rank: equal losses, weights and state. Returns the state
    of one rank."""
    settings = Settings(**{"batch": 8, "microbatch": 2, "seed": 5, **changes})
    reference, expected = run(specs, batch, one_rank(GRAINS), settings, optimizer, steps, False)
    pieces = state(reference, one_rank(GRAINS).world)
    assert pieces is not None
    wanted = join(pieces)
    for layout in layouts or LAYOUTS[world.size]:
        mesh = Mesh(*layout, grains=GRAINS, comm=world)
        engine, results = run(specs, batch, mesh, settings, optimizer, steps, False)
        assert results == expected, f"{layout} {changes}: {results} != {expected}"
        found = state(engine, world)
        if found is not None:
            got = join(found)
            assert got.keys() == wanted.keys()
            wrong = [key for key in wanted if got[key] != wanted[key]]
            assert not wrong, f"{layout} {changes}: {wrong[:5]} differ"
    return wanted


@case((2, 3, 4, 8), limit=120.0)
def sgd_is_the_same_at_every_layout(world: Communicator) -> None:
    """AdamW is in cases_bits."""
    changes = {"precision": "bfloat16", "zero": 1, "microbatch": 1, "clip": 0.5}
    compare(world, gpt(layers=2), gpt_batch(8), SGD(), 6, **changes)


def tied(spec: LayerSpec, original: str) -> LayerSpec:
    """The layer with its pair's weights tied to those of another layer, whatever its own Init."""

    def build(b: Build) -> Any:
        layer: Any = spec.build(b)
        for name in ("up", "down"):
            weight = getattr(layer.pair, name).weight
            weight.tied_to, weight.init = f"{original}.{name}.weight", Init(7.0)
        return layer

    return replace(spec, build=build)


@case((2, 3, 4), limit=60.0)
def a_weight_of_three_layers_stays_one(world: Communicator) -> None:
    first, one, two, three, head = models.mlp(
        input_shape=(5, 7), classes=10, hidden_dim=24, layers=4
    )
    specs = [first, one, tied(two, "layers.1"), tied(three, "layers.1"), head]
    batch = image_batch(8, (5, 7), 10)
    layouts = [at for at in factorisations(world.size) if at[1] <= 2 and at[0] <= 4]
    for changes in ({"precision": "bfloat16", "clip": 0.5}, {"precision": "float32", "zero": 1}):
        found = compare(world, specs, batch, AdamW(), 4, layouts, **changes)
        assert ("master", "layers.1.up.weight") in found
        assert ("master", "layers.2.up.weight") not in found


@case(4, limit=60.0)
def the_first_bucket_starts_before_the_last_gradient(world: Communicator) -> None:
    mesh = Mesh(2, 2, 1, grains=GRAINS, comm=world)
    settings = Settings(batch=8, microbatch=2, precision="float32")
    specs = gpt(layers=2)
    engine = Engine(specs, mesh, AdamW(), settings, bucket_size=4096)
    log: list[tuple[str, Any]] = []

    class Log(Observer):
        def ready(self, parameter: Any) -> None:
            log.append(("ready", parameter.name))

        def started(self, bucket: int) -> None:
            log.append(("started", bucket))

    engine.observe(Log())
    inputs, targets = gpt_batch(8)
    where = slice(engine.share.start, engine.share.stop)
    engine.step(0, 1e-3, inputs[where], targets[where])
    starts = [i for i, (kind, _) in enumerate(log) if kind == "started"]
    ready = [i for i, (kind, _) in enumerate(log) if kind == "ready"]
    assert len(starts) == len(engine.buckets) > 3
    assert starts[0] < ready[len(ready) // 2]
    order = world.gather_object([entry for entry in log if entry[0] == "started"])
    assert order is None or all(x == order[0] for x in order)


@case(2, limit=60.0)
def evaluation_between_steps_changes_no_shape(world: Communicator) -> None:
    """A pipeline's stages remember the shapes of training only."""
    mesh = Mesh(1, 1, 2, grains=GRAINS, comm=world)
    settings = Settings(batch=4, microbatch=1, precision="float32")
    engine = Engine(gpt(layers=2), mesh, AdamW(), settings)
    inputs, targets = gpt_batch(4)
    losses = []
    for step in range(2):
        losses.append(engine.step(step, 0.0, inputs, targets).loss)
        position = Position(step, 0, 1, False, 0)
        logits = engine.logits(position, inputs[:1, :3])
        assert (logits is None) == (mesh.pipeline.rank == 0)
    assert np.isfinite(losses).all()


@case((1, 2, 4), limit=60.0)
def a_digest_is_of_all_state_and_of_no_layout(world: Communicator) -> None:
    def digest(mesh: Mesh, change: str = "", **changes: Any) -> str:
        settings = Settings(batch=8, microbatch=2, **changes)
        engine, _ = run(gpt(layers=2), gpt_batch(8), mesh, settings, AdamW(), 2, False)
        return changed(engine, change)

    def changed(engine: Engine, kind: str) -> str:
        """After one bit of the last array of this kind on the last rank has changed."""
        if kind and world.rank == world.size - 1:
            array = [array for found, _, array in engine.owned() if found == kind][-1]
            array.view(np.uint32)[0] ^= 1
        return state_digest(engine)

    expected = digest(one_rank(GRAINS))
    assert len(expected) == 64
    for layout in [x for x in factorisations(world.size) if x[1] <= 2]:
        for zero in (0, 1):
            assert digest(Mesh(*layout, grains=GRAINS, comm=world), zero=zero) == expected, layout
    whole = Mesh(world.size, grains=GRAINS, comm=world)
    for kind in ("master", "first", "second"):
        assert digest(whole, change=kind, zero=1) != expected
    assert digest(whole, seed=1) != expected
    together, plait.train.digest.TOGETHER = plait.train.digest.TOGETHER, 1 << 12
    try:
        assert digest(whole) == expected
    finally:
        plait.train.digest.TOGETHER = together
    resnet = models.resnet(input_shape=(5, 4, 3), classes=3, blocks=(1,), width=8)
    settings = Settings(batch=8, microbatch=None, zero=1)
    engine, _ = run(resnet, image_batch(8, (5, 4, 3), 3), whole, settings, AdamW(), 1, False)
    assert changed(engine, "") != changed(engine, "buffer")
