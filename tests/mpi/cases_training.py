"""Many steps: losses, weights and optimizer state at every layout equal those of one rank."""

from __future__ import annotations

from typing import Any

from engines import Array, gpt, gpt_batch, image_batch, one_rank, run
from harness import case

from plait import models
from plait.comm import Communicator
from plait.mesh import Mesh
from plait.optim import SGD, AdamW
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


@case((2, 3, 4, 8), limit=240.0)
def training_is_the_same_at_every_layout(world: Communicator) -> None:
    batch: tuple[Array, Array] = gpt_batch(8)
    options: list[tuple[Any, dict[str, Any]]] = [
        (AdamW(weight_decay=0.1), {"precision": "bfloat16", "clip": 0.5}),
        (AdamW(weight_decay=0.1), {"precision": "float32", "zero": 1, "microbatch": 3}),
        (SGD(), {"precision": "bfloat16", "zero": 1, "microbatch": 1, "clip": 0.5}),
    ]
    for optimizer, changes in options:
        settings = Settings(**{"batch": 8, "microbatch": 2, "seed": 5, **changes})
        specs = gpt(layers=2)
        reference, expected = run(specs, batch, one_rank(GRAINS), settings, optimizer, 6, False)
        want = state(reference, one_rank(GRAINS).world)
        assert want is not None
        for layout in LAYOUTS[world.size]:
            mesh = Mesh(*layout, grains=GRAINS, comm=world)
            engine, results = run(specs, batch, mesh, settings, optimizer, 6, False)
            assert results == expected, f"{layout} {changes}: {results} != {expected}"
            found = state(engine, world)
            if found is not None:
                got, wanted = join(found), join(want)
                assert got.keys() == wanted.keys()
                wrong = [key for key in wanted if got[key] != wanted[key]]
                assert not wrong, f"{layout} {changes}: {wrong[:5]} differ"


@case((2, 3, 4, 8), limit=120.0)
def running_statistics_are_the_same_at_every_layout(world: Communicator) -> None:
    specs = models.resnet(input_shape=(8, 5, 1), classes=7, blocks=(1, 1), width=6)
    batch = image_batch(8, (8, 5, 1), 7)
    for precision, zero in [("float32", 0), ("bfloat16", 1)]:
        settings = Settings(batch=8, microbatch=2, precision=precision, zero=zero, seed=5)
        reference, expected = run(specs, batch, one_rank(GRAINS), settings, AdamW(), 4, False)
        want = state(reference, one_rank(GRAINS).world)
        assert want is not None
        assert len([1 for kind, *_ in want if kind == "buffer"]) >= 12
        for layout in LAYOUTS[world.size]:
            mesh = Mesh(*layout, grains=GRAINS, comm=world)
            engine, results = run(specs, batch, mesh, settings, AdamW(), 4, False)
            assert results == expected, f"{layout} {precision}: {results} != {expected}"
            found = state(engine, world)
            if found is not None:
                got, wanted = join(found), join(want)
                assert got.keys() == wanted.keys()
                wrong = [key for key in wanted if got[key] != wanted[key]]
                assert not wrong, f"{layout} {precision}: {wrong[:5]} differ"


@case(4, limit=60.0)
def the_first_bucket_starts_before_the_last_gradient(world: Communicator) -> None:
    mesh = Mesh(2, 2, 1, grains=GRAINS, comm=world)
    settings = Settings(batch=8, microbatch=2, precision="float32")
    specs = gpt(layers=2)
    engine = Engine(specs, mesh, AdamW(), settings, bucket_size=4096)
    engine.log = []
    inputs, targets = gpt_batch(8)
    where = slice(engine.share.start, engine.share.stop)
    engine.step(0, 1e-3, inputs[where], targets[where])
    starts = [i for i, (kind, _) in enumerate(engine.log) if kind == "start"]
    ready = [i for i, (kind, _) in enumerate(engine.log) if kind == "ready"]
    assert len(starts) == len(engine.buckets) > 3
    assert starts[0] < ready[len(ready) // 2]
    order = world.gather_object([entry for entry in engine.log if entry[0] == "start"])
    assert order is None or all(x == order[0] for x in order)
