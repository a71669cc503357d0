"""Small models, data and a gradient collector, for cases that compare layouts with one rank."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from plait import models
from plait.comm import Communicator
from plait.comm.alone import Alone
from plait.mesh import Mesh
from plait.nn import LayerSpec
from plait.train.engine import Engine, Settings

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Keep:
    """An optimizer that changes nothing: the gradients stay where they are."""

    learning_rate: float = 0.0
    state: ClassVar[tuple[str, ...]] = ()

    def update(self, *_: Any) -> None:
        pass


def random_values(name: str, shape: tuple[int, ...]) -> Array:
    """Any parameter's values, biases and norms too, by its name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    values = np.random.default_rng(seed).standard_normal(shape) * 0.2
    return (values + ("norm" in name and "weight" in name)).astype(np.float32)


def randomize(engine: Engine) -> None:
    wanted, finish = engine.to_load()
    for kind, span, array in wanted:
        p = span.parameter
        rows = p.true_rows if p.true_rows is not None else p.shape[0]
        whole = random_values(p.tied_to or p.name, (rows, *p.shape[1:])).ravel()
        if kind == "master":
            array[:] = whole[span.global_start : span.global_start + len(array)]
    finish()


def gradients(engine: Engine, world: Communicator) -> dict[str, Array] | None:
    """Every parameter's whole gradient by name, on rank 0; each element from one rank that owns
    it."""
    mine = []
    for bucket in engine.buckets:
        for span in bucket.spans(bucket.cut):
            part = bucket.gradient[span.start - bucket.own.start : span.stop - bucket.own.start]
            p = span.parameter
            rows = p.true_rows if p.true_rows is not None else p.shape[0]
            shape = (rows, *p.shape[1:])
            mine.append((p.name, shape, span.global_start, part.copy()))
    everyone = world.gather_object(mine)
    if everyone is None:
        return None
    found: dict[str, Array] = {}
    for name, shape, start, part in (entry for rank in everyone for entry in rank):
        whole = found.setdefault(name, np.full(int(np.prod(shape)), np.nan, np.float32))
        whole[start : start + len(part)] = part
    assert not any(np.isnan(x).any() for x in found.values()), "a gradient has holes"
    return found


GPT = {
    "layers": 8, "hidden_dim": 32, "heads": 8, "vocabulary": 101, "sequence_length": 13,
    "dropout": 0.1,
}  # fmt: skip


def gpt(**changes: Any) -> list[LayerSpec]:
    return models.gpt(**{**GPT, **changes})


def gpt_batch(batch: int, length: int = 13, vocabulary: int = 101) -> tuple[Array, Array]:
    """Tokens and targets; sample i has i masked targets more than sample 0, so shares are
    unequal."""
    random = np.random.default_rng(7)
    tokens = random.integers(0, vocabulary, (batch, length + 1)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    for index in range(batch):
        targets[index, : index % length] = -1
    return tokens[:, :-1].copy(), targets


def image_batch(batch: int, shape: tuple[int, ...], classes: int) -> tuple[Array, Array]:
    random = np.random.default_rng(8)
    inputs = random.standard_normal((batch, *shape)).astype(np.float32)
    return inputs, random.integers(0, classes, batch).astype(np.int32)


def run(
    specs: list[LayerSpec], batch: tuple[Array, Array], mesh: Mesh, settings: Settings,
    optimizer: Any = None, steps: int = 1, randomized: bool = True,
) -> tuple[Engine, list[Any]]:  # fmt: skip
    """Trains `steps` steps on the same batch; returns the engine and the results."""
    engine = Engine(specs, mesh, optimizer or Keep(), settings)
    if randomized:
        randomize(engine)
    where = slice(engine.share.start, engine.share.stop)
    results = [engine.step(step, 1e-3, batch[0][where], batch[1][where]) for step in range(steps)]
    return engine, results


def one_rank(grains: dict[str, int]) -> Mesh:
    return Mesh(grains=grains, comm=Alone())


def factorisations(ranks: int) -> list[tuple[int, int, int]]:
    """Every (data, tensor, pipeline) with this product."""
    return [
        (d, t, ranks // (d * t))
        for d in range(1, ranks + 1)
        for t in range(1, ranks + 1)
        if ranks % (d * t) == 0
    ]
