"""Nothing is quietly replicated: memory and traffic of every rank equal the formulas of
docs/layouts.md."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import dataclass
from math import prod

import numpy as np
from engines import GPT, factorisations, gpt, gpt_batch
from harness import case

from plait.backend import kernels
from plait.comm import Communicator
from plait.mesh import Mesh
from plait.nn.linear import padded
from plait.optim import AdamW
from plait.train.engine import Engine, Settings

LAYERS, C, V, S = 4, GPT["hidden_dim"], GPT["vocabulary"], GPT["sequence_length"]
BATCH, MICROBATCH = 8, 2
GRAINS = {"data": 8, "tensor": 4}


def split_elements(layers: int, first: bool, last: bool, tensor: int) -> int:
    """Elements of a stage's parameters that the tensor axis divides."""
    block = 3 * C * C + 3 * C + C * C + 8 * C * C + 4 * C
    vocabulary = padded(V, GRAINS["tensor"]) * C
    return (layers * block + (first + last) * vocabulary) // tensor


def replicated_elements(layers: int, first: bool, last: bool) -> int:
    """Norm weights and biases, row-parallel biases, positions."""
    return layers * 6 * C + first * S * C + last * 2 * C


def stage_of(engine: Engine, mesh: Mesh) -> tuple[int, bool, bool]:
    a, b = engine.stage_bounds[mesh.pipeline.rank : mesh.pipeline.rank + 2]
    total = LAYERS + 2
    return min(b, total - 1) - max(a, 1), a == 0, b == total


@case((2, 4, 8), limit=120.0)
def memory_is_as_documented(world: Communicator) -> None:
    for layout in factorisations(world.size):
        if layout[1] > GRAINS["tensor"] or layout[2] > LAYERS:
            continue
        for zero in (0, 1):
            mesh = Mesh(*layout, grains=GRAINS, comm=world)
            settings = Settings(batch=BATCH, microbatch=MICROBATCH, precision="bfloat16", zero=zero)
            engine = Engine(gpt(layers=LAYERS), mesh, AdamW(), settings)
            layers, first, last = stage_of(engine, mesh)
            split = split_elements(layers, first, last, mesh.tensor.size)
            whole = replicated_elements(layers, first, last)
            elements = sum(prod(p.local_shape) for b in engine.buckets for p in b.parameters)
            assert elements == split + whole, (layout, elements, split, whole)
            # Buckets start parameters at multiples of 16 elements: at most 15 more each.
            slack = 15 * len(engine.parameters)
            flat = sum(b.size for b in engine.buckets)
            assert split + whole <= flat <= split + whole + slack, (layout, flat)
            grads = sum(b.grads.size for b in engine.buckets)
            leaves = GRAINS["tensor"] // mesh.tensor.size
            slots = engine.share.slots
            most = slots * (split + leaves * whole + slack * leaves)
            assert slots * (split + leaves * whole) <= grads <= most, (layout, grads)
            # Masters and moments: all of it, or with ZeRO this data rank's cut of each bucket.
            own = sum(len(engine.master[i]) for i in engine.master)
            share = sum(
                b.bounds[mesh.data.rank + 1] - b.bounds[mesh.data.rank] for b in engine.buckets
            )
            assert own == (share if zero else flat), (layout, zero, own)
            assert all(
                len(x) == len(engine.master[i]) for i, s in engine.state.items() for x in s.values()
            )
            if zero:
                total = mesh.data.all_reduce(np.array([own]))
                assert int(total[0]) == flat
                assert own <= flat / mesh.data.size + 1024 * len(engine.buckets)


def expected_calls(engine: Engine, layers: int, first: bool, last: bool) -> Counter[str]:
    """Calls of one step on the tensor communicator, as docs/layouts.md has them."""
    m = len(engine.share.microbatches(0, 0))
    replicated = sum(b.replicated for b in engine.buckets)
    tensor = Counter(all_reduce_nodes=m * (4 * layers + last) + replicated)
    if first:
        tensor["all_reduce"] += m
    if last:
        tensor["all_gather"] += m
        tensor["all_reduce"] += m
    return tensor


@dataclass(frozen=True)
class EmbeddingRows:
    """Rows of the embedding that this rank has tokens of; whether they go by themselves."""

    count: int
    sparse: bool


def embedding_rows(engine: Engine, mesh: Mesh, tokens: np.ndarray) -> EmbeddingRows:
    found = [p for p in engine.parameters if p.by_rows]
    if not found:
        return EmbeddingRows(0, False)
    ((start, _), *_), stop = found[0].rows, found[0].rows[-1][1]
    count = len(np.unique(tokens[(tokens >= start) & (tokens < stop)]))
    total = int(mesh.data.all_reduce(np.array([count]))[0])
    return EmbeddingRows(count, 2 * total < mesh.data.size * (stop - start))


@case((2, 4, 8), limit=120.0)
def traffic_is_as_documented(world: Communicator) -> None:
    for layout in factorisations(world.size):
        if layout[1] > GRAINS["tensor"] or layout[2] > LAYERS:
            continue
        # One leaf a rank: each rank sends one node.
        grains = {"data": layout[0], "tensor": layout[1]}
        mesh = Mesh(*layout, grains=grains, comm=world)
        settings = Settings(batch=BATCH, microbatch=MICROBATCH, precision="bfloat16", zero=1)
        engine = Engine(gpt(layers=LAYERS), mesh, AdamW(), settings)
        layers, first, last = stage_of(engine, mesh)
        inputs, targets = gpt_batch(BATCH)
        where = slice(engine.share.start, engine.share.stop)
        for comm in (mesh.tensor, mesh.data, mesh.pipeline):
            comm.reset_tally()
        engine.step(0, 1e-3, inputs[where], targets[where])
        m = len(engine.share.microbatches(0, 0))
        activation = MICROBATCH * S * C
        if mesh.tensor.size > 1:
            expected = expected_calls(engine, layers, first, last)
            calls = Counter({name: count for name, (count, _) in mesh.tensor.tally.items()})
            assert +calls == +expected, (layout, calls, expected)
            sums = 4 * activation * m * (4 * layers + last)
            replicated = sum(4 * (b.cut.stop - b.cut.start) for b in engine.buckets if b.replicated)
            assert mesh.tensor.tally["all_reduce_nodes"][1] == sums + replicated, layout
        if mesh.data.size > 1:
            rows = embedding_rows(engine, mesh, inputs[where])
            whole = [b for b in engine.buckets if not (b.parameters[0].by_rows and rows.sparse)]
            flat = sum(b.size for b in whole)
            assert mesh.data.tally["reduce_scatter_nodes"][0] == len(whole)
            assert mesh.data.tally["reduce_scatter_nodes"][1] == 4 * flat, layout
            assert mesh.data.tally["all_to_all"][0] == (first and rows.sparse), layout
            assert mesh.data.tally["all_to_all"][1] <= 4 * C * rows.count, layout
            updated = [b for b in engine.buckets if not (first and last and _is_copy(engine, b))]
            own = sum(b.own.stop - b.own.start for b in updated)
            # and of the rows: how many each rank has, then which
            told = first * (1 + rows.sparse)
            assert mesh.data.tally["all_gather"][0] == len(updated) + told
            told = first * 8 * (1 + rows.sparse * rows.count)
            assert mesh.data.tally["all_gather"][1] == 2 * own + told, layout
        if mesh.pipeline.size > 1:
            neighbours = (not first) + (not last)
            tied = 4 * sum(
                b.own.stop - b.own.start for t in engine.ties for b in (t.home, *t.aliases) if b
            )
            headers = 64 * neighbours
            sent = mesh.pipeline.tally["send"][1]
            assert sent == 2 * activation * m * neighbours + tied + headers, (layout, sent)


def _is_copy(engine: Engine, bucket: object) -> bool:
    return any(c is bucket for t in engine.ties for c in t.copies)


@case((1, 2, 4), limit=120.0)
def later_steps_take_no_memory(world: Communicator) -> None:
    """Whatever the layout: the pool's count of what it took from the system stays after some steps.
    How many arrays are there at a time depends a little on who waits for whom."""
    for layout in factorisations(world.size):
        if layout[1] > GRAINS["tensor"] or layout[2] > LAYERS:
            continue
        for schedule in ("one_f_one_b", "gpipe"):
            mesh = Mesh(*layout, grains=GRAINS, comm=world)
            settings = Settings(batch=16, microbatch=2, zero=1, schedule=schedule)
            engine = Engine(
                gpt(layers=LAYERS, hidden_dim=128, sequence_length=64), mesh, AdamW(), settings
            )
            inputs, targets = gpt_batch(16, length=64)
            mine = slice(engine.share.start, engine.share.stop)
            found = []
            for step in range(16):
                engine.step(step, 1e-3, inputs[mine], targets[mine])
                found.append(kernels.memory_use()["system_calls"])
                calm = np.array([int(step > 4 and found[-5:] == [found[-1]] * 5)])
                if world.all_reduce(calm, "min")[0]:
                    break
            else:
                raise AssertionError((layout, schedule, found))
            assert found[1] > 0


@case((2,))
def a_freed_model_leaves_no_shared_memory(world: Communicator) -> None:
    gc.collect()
    kernels.trim_memory()
    before = kernels.memory_use()["shared"]
    mesh = Mesh(2, comm=world)
    engine = Engine(gpt(), mesh, AdamW(), Settings(4, 2, zero=1))
    inputs, targets = (x[2 * mesh.data.rank :][:2] for x in gpt_batch(4))
    engine.step(0, 1e-3, inputs, targets)
    weights = sum(4 * b.grads.size + b.weights.nbytes for b in engine.buckets)
    if mesh.data.transport == "node":
        assert kernels.memory_use()["shared"] >= before + weights
    mesh.close()
    del engine, mesh
    gc.collect()
    assert kernels.memory_use()["shared"] <= before + 3 * 4096, (kernels.memory_use(), before)
