"""Gradients at every layout against one rank: the same bits for every parameter."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from engines import (
    Array,
    factorisations,
    gpt,
    gpt_batch,
    gradients,
    image_batch,
    one_rank,
    run,
)
from harness import case

from plait import models
from plait.comm import Communicator
from plait.mesh import Mesh
from plait.train.engine import Settings

BATCH = 12
GRAINS = {"data": 12, "tensor": 8}


def compare(name: str, found: dict[str, Array] | None, expected: dict[str, Array] | None) -> None:
    """On rank 0: every gradient has the same bits."""
    if found is None or expected is None:
        return
    assert found.keys() == expected.keys(), name
    for key, want in expected.items():
        got = found[key]
        if got.tobytes() != want.tobytes():
            worst, largest = np.abs(got - want).max(), np.abs(want).max()
            raise AssertionError(f"{name}: {key} differs by {worst}, largest entry {largest}")


def compare_layouts(
    world: Communicator, specs: Any, batch: Any, variants: list[dict[str, Any]],
    layouts: list[tuple[int, int, int]], grains: dict[str, int], **common: Any,
) -> None:  # fmt: skip
    base = {"batch": BATCH, "microbatch": BATCH, "precision": "float32", "seed": 3, **common}
    engine, (expected_result,) = run(specs, batch, one_rank(grains), Settings(**base))
    expected = gradients(engine, one_rank(grains).world)
    for layout, variant in product(layouts, variants):
        name = f"{layout} {variant}"
        mesh = Mesh(*layout, grains=grains, comm=world)
        engine, (result,) = run(specs, batch, mesh, Settings(**{**base, **variant}))
        compare(name, gradients(engine, world), expected)
        assert result == expected_result, name


VARIANTS: list[dict[str, Any]] = [
    {"microbatch": 12},
    {"microbatch": 2, "zero": 1, "recompute": "layer"},
    {"microbatch": 5, "zero": 1, "schedule": "gpipe"},
    {"microbatch": 1, "sequence_parallel": True},
    {"microbatch": 3, "sequence_parallel": True, "recompute": "layer", "zero": 1, "clip": 0.1},
]


@case((1, 2, 3, 4, 6, 8), limit=240.0, long=(6, 8))
def gpt_gradients(world: Communicator) -> None:
    layouts = [
        (d, t, p) for d, t, p in factorisations(world.size) if t <= GRAINS["tensor"] and p <= 10
    ]
    compare_layouts(world, gpt(), gpt_batch(BATCH), VARIANTS, layouts, GRAINS)


@case((2, 4), limit=120.0)
def gpt_gradients_bfloat16(world: Communicator) -> None:
    layouts = factorisations(world.size)
    compare_layouts(
        world, gpt(layers=2), gpt_batch(BATCH), VARIANTS, layouts, GRAINS, precision="bfloat16"
    )


@case((2, 3, 4), limit=120.0)
def llama_gradients(world: Communicator) -> None:
    specs = models.llama(
        layers=3, hidden_dim=48, heads=12, kv_heads=6, vocabulary=67, sequence_length=11
    )
    layouts = [(d, t, p) for d, t, p in factorisations(world.size) if t != 4]
    grains = {"data": 4, "tensor": 3}
    compare_layouts(world, specs, gpt_batch(BATCH, 11, 67), VARIANTS, layouts, grains)


@case((1, 2, 3, 4, 6, 8), limit=120.0)
def mlp_gradients(world: Communicator) -> None:
    specs = models.mlp(input_shape=(5, 7), classes=10, hidden_dim=24, layers=7)
    variants = [v for v in VARIANTS if not v.get("sequence_parallel")]
    layouts = list(factorisations(world.size))
    compare_layouts(world, specs, image_batch(BATCH, (5, 7), 10), variants, layouts, GRAINS)


@case((2, 3, 4), limit=120.0)
def vit_gradients(world: Communicator) -> None:
    """15 positions and 12 pixels a patch, cut into 8 tensor leaves."""
    specs = models.vit(
        input_shape=(6, 10, 3), classes=10, layers=2, hidden_dim=32, heads=8, patch=2, dropout=0.1
    )
    batch, layouts = image_batch(BATCH, (6, 10, 3), 10), list(factorisations(world.size))
    for variant, precision in zip(VARIANTS[1:], ("bfloat16", "float32", "float32", "bfloat16")):
        compare_layouts(world, specs, batch, [variant], layouts, GRAINS, precision=precision)


@case((1, 2, 3, 4, 6, 8), limit=120.0, long=(6, 8))
def resnet_gradients(world: Communicator) -> None:
    """Batch norm makes the microbatch count: where it is given, only layouts that cut a batch into
    the same ones. The totals of running statistics are compared like gradients."""
    specs = models.resnet(input_shape=(9, 7, 3), classes=10, blocks=(2, 2, 2), width=10)
    batch = image_batch(BATCH, (9, 7, 3), 10)
    for variant in [
        {"microbatch": 12, "recompute": "layer"},
        {"microbatch": 1, "zero": 1},
        {"microbatch": 2, "schedule": "gpipe"},
        {"microbatch": 3, "zero": 1, "recompute": "layer", "precision": "bfloat16"},
    ]:
        size = variant["microbatch"]
        layouts = [
            (data, tensor, pipeline)
            for data, tensor, pipeline in factorisations(world.size)
            if all(rank * BATCH // data % size == 0 for rank in range(data))
        ]
        compare_layouts(world, specs, batch, [variant], layouts, GRAINS, **variant)
    # One microbatch of each data leaf, which is what plait takes by itself: every layout agrees,
    # with leaves of 1 and 2 samples too.
    layouts = list(factorisations(world.size))
    variants = [{"zero": 1}, {"recompute": "layer", "schedule": "gpipe"}]
    grains = {"data": 8, "tensor": 8}
    compare_layouts(world, specs, batch, variants, layouts, grains, microbatch=None)


@case((2, 3, 4), limit=120.0)
def fewer_columns_than_tensor_ranks(world: Communicator) -> None:
    """Ranks whose leaves have no column at all take part as any other."""
    layouts = list(factorisations(world.size))
    variants: list[dict[str, Any]] = [{"microbatch": 12}, {"microbatch": 5, "zero": 1}]
    mlp = models.mlp(input_shape=(5, 7), classes=10, hidden_dim=1, layers=3)
    compare_layouts(world, mlp, image_batch(BATCH, (5, 7), 10), variants, layouts, GRAINS)
    resnet = models.resnet(input_shape=(5, 4, 3), classes=3, blocks=(1, 1), width=1)
    batch = image_batch(BATCH, (5, 4, 3), 3)
    compare_layouts(world, resnet, batch, [{"zero": 1}], layouts, GRAINS, microbatch=None)
    llama = models.llama(
        layers=2, hidden_dim=24, heads=12, mlp_dim=1, vocabulary=67, sequence_length=11
    )
    grains = {"data": 12, "tensor": 4}
    compare_layouts(world, llama, gpt_batch(BATCH, 11, 67), variants, layouts, grains)
