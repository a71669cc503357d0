"""Rules 1 to 8 of docs/numerics.md: the sums of a step of training, on one rank. Those of single
kernels are in test_numerics_kernels.py and test_numerics_fusion.py, the later ones in
test_numerics_program.py; what needs more ranks is in tests/mpi."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from engines import gpt, gpt_batch, gradients, image_batch, one_rank, random_values, run

from plait import _cpu, models, nn
from plait.autograd import Tape
from plait.backend import PRECISIONS, Array, float32, kernels
from plait.comm import Leaves
from plait.comm.alone import Alone
from plait.nn import Build, LayerSpec
from plait.ops import fan_in
from plait.ops.position import Share
from plait.ops.sums import position_chunks
from plait.optim import AdamW
from plait.train.digest import state_digest
from plait.train.engine import Settings

GRAINS = {"data": 4, "tensor": 2}
BATCH = 8
every_precision = pytest.mark.parametrize("precision", PRECISIONS)

Problem = tuple[list[LayerSpec], tuple[Array, Array]]


def transformer() -> Problem:
    return gpt(layers=2), gpt_batch(BATCH)


def grouped() -> Problem:
    sizes = {"layers": 1, "hidden_dim": 32, "heads": 4, "kv_heads": 2}
    return models.llama(**sizes, vocabulary=101, sequence_length=13), gpt_batch(BATCH)


def perceptron() -> Problem:
    return models.mlp(input_shape=(5, 7), classes=10, hidden_dim=24), image_batch(BATCH, (5, 7), 10)


def residual() -> Problem:
    specs = models.resnet(input_shape=(6, 5, 1), classes=7, blocks=(1, 1), width=6)
    return specs, image_batch(BATCH, (6, 5, 1), 7)


def patches() -> Problem:
    shape = (6, 10, 1)  # 15 positions
    specs = models.vit(input_shape=shape, classes=7, layers=1, hidden_dim=24, heads=2, patch=2)
    return specs, image_batch(BATCH, shape, 7)


every_problem = pytest.mark.parametrize(
    "problem", [transformer, grouped, perceptron, residual, patches]
)


def trained(problem: Problem, grains: dict[str, int] = GRAINS, **changes: Any) -> str:
    """The digest of all state after two steps; gradients' buffers hold NaN before each."""
    settings = Settings(**{"batch": BATCH, "microbatch": None, "clip": 0.5, **changes})
    engine, _ = run(*problem, one_rank(grains), settings, AdamW(), steps=0)
    for step in range(2):
        for bucket in engine.buckets:
            bucket.grads.fill(np.nan)
        assert np.isfinite(engine.step(step, 1e-3, *problem[1]).grad_norm)
    return state_digest(engine)


@every_precision
def test_rule_1_grains_are_part_of_the_numerics(precision: str) -> None:
    """Or the tests of the other rules could not fail."""
    grains = [{"data": d, "tensor": t} for d, t in ((1, 1), (3, 1), (4, 1), (4, 2))]
    assert len({trained(transformer(), g, precision=precision) for g in grains}) == 4


@every_precision
@every_problem
def test_rule_3_what_is_no_part_of_the_numerics(
    problem: Callable[[], Problem], precision: str
) -> None:
    specs, batch = problem()
    expected = trained((specs, batch), precision=precision)
    changes: list[dict[str, Any]] = [{"recompute": "layer"}, {"schedule": "gpipe"}, {"zero": 1}]
    if problem is not residual:  # rule 11
        changes += [{"microbatch": m} for m in (1, 2, 3, 5, 8)]
    for change in changes:
        assert trained((specs, batch), precision=precision, **change) == expected, change
    for threads in (2, 3):
        _cpu.set_threads(threads)
        try:
            assert trained((specs, batch), precision=precision) == expected, f"{threads} threads"
        finally:
            _cpu.set_threads(1)


@every_precision
@every_problem
def test_rule_3_leaves_are_chains_of_their_own_that_meet_in_the_tree(
    problem: Callable[[], Problem], precision: str
) -> None:
    """Eight leaves of two samples: as eight runs of one leaf each, whose losses are scaled by eight
    times as much, added by the tree. Buffers hold NaN before: no leaf reads it."""
    specs, _ = problem()
    if problem is transformer:
        specs = gpt(layers=1, dropout=0.0, tied=False)
    inputs, targets = (np.concatenate([x, x[::-1]]) for x in problem()[1])
    inputs, targets = inputs[:16], np.abs(targets[:16])
    precisely = {"microbatch": None, "precision": precision}

    def gradient(where: slice, leaves: int) -> dict[str, Array]:
        count = where.stop - where.start
        mesh = one_rank({"data": leaves, "tensor": 1})
        engine, _ = run(specs, (inputs, targets), mesh, Settings(batch=count, **precisely), steps=0)
        for bucket in engine.buckets:
            bucket.grads.fill(np.nan)
        engine.step(0, 0.0, inputs[where], targets[where])
        found = gradients(engine, mesh.world)
        assert found is not None
        return {name: x for name, x in found.items() if "running" not in name}

    whole = gradient(slice(0, 16), 8)
    parts = [gradient(slice(first, first + 2), 1) for first in range(0, 16, 2)]
    assert any((sum(p[name] for p in parts) != 8 * x).any() for name, x in whole.items())
    for name, x in whole.items():
        added = np.empty_like(x)
        kernels.tree_sum([p[name] for p in parts], Leaves.even(8, 8).merges(), None, added)
        assert x.tobytes() == (added / 8).tobytes(), name


@pytest.mark.parametrize("parts", [[24], [12, 12], [16, 8, 8], [7]])
@pytest.mark.parametrize("leaves", [1, 2, 4])
def test_rule_5_leaves_cut_each_fused_part(parts: list[int], leaves: int) -> None:
    """Rank after rank gives the same rows at every size, leaf by leaf."""
    expected = []
    for leaf in range(leaves):
        start = 0
        for n in parts:
            expected += range(start + leaf * n // leaves, start + (leaf + 1) * n // leaves)
            start += n
    for size in range(1, leaves + 1):
        found = []
        for rank in range(size):
            comm = Alone().with_leaves(Leaves.even(leaves, 1))
            comm.rank, comm.leaves = rank, Leaves.even(leaves, size)
            p = Build(comm).split_parts("w", (sum(parts), 3), parts)
            found += [row for start, stop in p.rows for row in range(start, stop)]
            assert len(p.leaf_rows) == len(comm.leaves.run(rank)) + 1
        assert found == expected


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=str)
def test_rule_6_a_replicated_parameter_has_a_chain_for_each_chunk(dtype: Any) -> None:
    """Of each sample's positions, with the same chunks at every tensor size."""
    samples, length, channels, leaves = 4, 10, 33, 3
    comm = Alone().with_leaves(Leaves.even(leaves, 1))
    norm = nn.LayerNorm(Build(comm), channels)
    random = np.random.default_rng(1)
    x, grad = random.standard_normal((2, samples, length, channels)).astype(float32).astype(dtype)
    for p in norm.parameters():
        p.array = random.standard_normal(channels).astype(float32).astype(dtype)
        p.grads = np.full((1, leaves, channels), np.nan, float32)
    for position in Share(samples, Leaves.even(1, 1), 0, 3).microbatches(0, 0):
        where = slice(position.first_sample, position.first_sample + position.count)
        with Tape(position, fan_in) as tape:
            y = norm(tape.input(x[where]))
        tape.backward(y, grad[where])
    out, mean, rstd = np.empty_like(x), *np.empty((2, samples, length), float32)
    flat = x.reshape(-1, channels), *(p.array for p in norm.parameters())
    kernels.layer_norm_forward(
        flat[0], None, *flat[1:], 1e-5, None, out.reshape(-1, channels), mean.ravel(), rstd.ravel()
    )
    bounds = [leaf * length // leaves for leaf in range(leaves + 1)]
    for leaf, (a, b) in enumerate(pairwise(bounds)):
        sums = np.empty((2, channels), float32)
        chunk = (z[:, a:b] for z in (grad, x, mean, rstd))
        kernels.layer_norm_backward_weight(*chunk, False, *sums)
        assert sums.tobytes() == b"".join(p.grads[0, leaf].tobytes() for p in norm.parameters())
    for size in range(1, leaves + 1):
        found = []
        for rank in range(size):
            comm.rank, comm.leaves = rank, Leaves.even(leaves, size)
            found += [(c.start, c.stop) for c in position_chunks(comm, position, length)]
        assert found == list(pairwise(bounds))


@every_precision
def test_rule_7_a_tied_embedding_adds_two_gradients_once(precision: str) -> None:
    settings = Settings(batch=BATCH, microbatch=3, precision=precision)

    def gradient(tied: bool) -> tuple[dict[str, Array], float]:
        mesh = one_rank({"data": 4, "tensor": 1})
        engine, _ = run(gpt(layers=1, tied=tied), gpt_batch(BATCH), mesh, settings, steps=0)
        wanted, finish = engine.to_load()
        for _, span, array in wanted:
            p = span.parameter
            name = p.name.replace("output.head", "embed.tokens")
            whole = random_values(name, (p.true_rows or p.shape[0], *p.shape[1:])).ravel()
            array[:] = whole[span.global_start : span.global_start + len(array)]
        finish()
        result = engine.step(0, 0.0, *gpt_batch(BATCH))
        found = gradients(engine, mesh.world)
        assert found is not None
        return found, result.grad_norm

    (one, norm), (two, _) = gradient(True), gradient(False)
    lookup, head = two.pop("embed.tokens.weight"), two.pop("output.head.weight")
    assert lookup.any()
    two["embed.tokens.weight"] = lookup + head
    assert one.pop("output.head.weight").tobytes() == (lookup + head).tobytes()
    assert {name: x.tobytes() for name, x in one.items()} == {
        name: x.tobytes() for name, x in two.items()
    }
    limbs = np.zeros(kernels.LIMBS, np.int64)
    for x in two.values():
        kernels.exact_sum(x, True, limbs)
    assert norm == np.sqrt(kernels.exact_value(limbs))


@every_precision
def test_rule_8_padding_never_learns(precision: str) -> None:
    """Nor does anything that lies in its logits reach the loss: 27 of 128 rows are padding."""
    settings = Settings(batch=BATCH, microbatch=2, precision=precision)
    results = []
    for garbage in (0.0, 1e4):
        mesh = one_rank(GRAINS)
        engine, _ = run(gpt(layers=1), gpt_batch(BATCH), mesh, settings, AdamW(), steps=0)
        padded = [p for p in engine.parameters if p.true_rows is not None]
        assert [p.name for p in padded] == ["embed.tokens.weight", "output.head.weight"]
        for p in padded:
            p.array[p.true_rows :] = garbage
        results.append(engine.step(0, 1e-3, *gpt_batch(BATCH)))
        if garbage == 0.0:
            assert all(not p.array[p.true_rows :].tobytes().strip(b"\0") for p in padded)
    assert results[0].loss == results[1].loss
