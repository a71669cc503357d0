"""Replicas and owners check themselves: one flipped bit is named, with parameter, rank and host."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from engines import Array, gpt, gpt_batch, run
from harness import case

from plait import data, models
from plait.autograd import SILENT
from plait.comm import Communicator
from plait.mesh import Mesh
from plait.optim import AdamW
from plait.train.engine import Engine, Settings
from plait.train.replicas import ReplicasDiffer, check_replicas
from plait.train.state_check import StateChanged, StateCheck
from plait.train.trainer import Trainer

GRAINS = {"data": 4, "tensor": 2}


def first_weight(engine: Engine, name: str) -> Array:
    (found,) = [p for p in engine.parameters if p.name == name]
    bits: Array = found.array.reshape(-1).view(np.uint16)
    return bits


@case((2, 4, 8), limit=60.0)
def a_replica_with_other_bits_is_named(world: Communicator) -> None:
    """One flipped bit: of a weight, with and without ZeRO, and of a moment."""
    for zero, what in ((0, "weight"), (1, "weight"), (0, "first moment")):
        replicas = 2 if world.size == 2 else 4
        mesh = Mesh(replicas, world.size // replicas, 1, grains=GRAINS, comm=world)
        settings = Settings(batch=8, microbatch=2, precision="bfloat16", zero=zero)
        engine, _ = run(gpt(layers=1), gpt_batch(8), mesh, settings, AdamW(), 2, False)
        check_replicas(engine)
        culprit = world.size - 1
        if world.rank == culprit:
            name = "blocks.0.mlp.up.weight"
            if what == "weight":
                first_weight(engine, name)[3] ^= 1
            else:
                index, start = next(
                    (index, span.start)
                    for index, bucket in enumerate(engine.buckets)
                    for span in bucket.spans(slice(0, bucket.size))
                    if span.parameter.name == name
                )
                engine.state[index]["first"].view(np.uint32)[start] ^= 1
        with pytest.raises(ReplicasDiffer) as error:
            check_replicas(engine)
        said = str(error.value)
        assert f"differ in the {what} of blocks.0.mlp.up.weight" in said, said
        assert f"rank {culprit} on host" in said, said
        assert ("no majority" in said) == (replicas == 2), said
        assert said.count("rank ") == (2 if replicas == 2 else 1), said


@case(2, limit=30.0)
def a_trainer_checks_its_replicas(world: Communicator) -> None:
    trainer = Trainer(
        models.mlp(input_shape=(4, 4), classes=3, hidden_dim=8, layers=2),
        data.synthetic(samples=50, input_shape=(4, 4), classes=3),
        mesh=Mesh(2, comm=world), optimizer=AdamW(), batch=8, precision="float32", check_every=2,
    )  # fmt: skip
    trainer.engine.observe(SILENT)  # or the rank would see it first
    steps = trainer.steps(6)
    for _ in range(3):
        next(steps)
    if world.rank == 1:
        trainer.engine.parameters[0].array.reshape(-1).view(np.uint32)[0] ^= 1
    with pytest.raises(ReplicasDiffer, match=r"after step 4: replicas differ in .* no checkpoint"):
        next(steps)


@case(2, limit=60.0)
def an_owner_sees_its_shard_change(world: Communicator) -> None:
    """Each step looks at one part in `check_every` of masters, moments and weights."""
    for what in ("first", "second", "master", "weight"):
        mesh = Mesh(2, grains=GRAINS, comm=world)
        settings = Settings(batch=8, microbatch=2, precision="bfloat16", zero=1)
        engine = Engine(gpt(layers=1), mesh, AdamW(), settings)
        StateCheck(engine, 4)
        inputs, targets = gpt_batch(8)
        mine = slice(engine.share.start, engine.share.stop)
        step = partial(engine.step, learning_rate=1e-3, inputs=inputs[mine], targets=targets[mine])
        for index in range(6):
            step(index)
        wanted, finish = engine.to_load()
        for _, _, array in wanted:
            array.fill(0)
        finish()  # as a checkpoint does: no change that it would mind
        step(6)  # part 3 of 4 is looked at from here on
        if world.rank == 1:
            index = next(i for i, b in enumerate(engine.buckets) if len(b.parameters) > 1)
            bucket = engine.buckets[index]
            spans, start = bucket.spans(bucket.own), bucket.own.start
            first, last = spans[0].start - start, spans[-1].stop - 1 - start
            arrays = {"master": engine.master[index], **engine.state[index]}
            array = arrays.get(what, bucket.weights[bucket.own])
            assert first < len(array) // 4 < 3 * len(array) // 4 <= last
            array.view(f"u{array.dtype.itemsize}")[first] ^= 1
            engine.observer.reduced()
            array.view(f"u{array.dtype.itemsize}")[last] ^= 1
            with pytest.raises(StateChanged, match=f"{what}.* of .*: rank 1 on host .* memory"):
                engine.observer.reduced()
