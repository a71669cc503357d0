"""The wgmma engine of matmul against float64, and bits that plan and alignment leave alone."""

import functools
import itertools

import ml_dtypes
import numpy as np
import pytest
from kernel_backends import fibers, kernels
from matmul_checks import same_bits, tree_sum

from plait.comm import tree

BFLOAT16, FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
pytestmark = pytest.mark.cuda


@functools.cache
def engine():
    """The module of the GPU, where it has wgmma; else that of fibers."""
    module = kernels("cuda")
    return module if module.wgmma_available() else fibers()


def randoms(*shape, seed=0):
    x = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return x.astype(np.float32).astype(BFLOAT16)


def placed(x, gap=0, offset=0):
    """The same values `offset` elements off a multiple of 64 bytes, in rows `gap` apart."""
    stride = x.shape[1] + gap
    room = np.full(x.shape[0] * stride + offset + 64, np.nan, x.dtype)
    first = -room.__array_interface__["data"][0] % 64 // x.dtype.itemsize + offset
    wide = room[first : first + x.shape[0] * stride].reshape(x.shape[0], stride)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def merges_of(leaves):
    count = len(leaves) - 1
    return tree.merges(count, [(i, i + 1) for i in range(count)])


def run(
    a, b, ta=False, tb=False, *, leaves=None, merges=None, slot=0, accumulate=False, period=0,
    bias=None, out=None, dtype=FLOAT32, plan=None, gap=0, offset=0, **epilogue,
):  # fmt: skip
    """a b of bfloat16 a (M, K), b (K, N), stored as ta, tb, gap and offset say."""
    leaves = leaves or [0, a.shape[1]]
    stored_a = placed(a.T if ta else a, gap, offset)
    stored_b = placed(b.T if tb else b, gap, offset)
    if out is None:
        out = placed(np.full((a.shape[0], b.shape[1]), 7, dtype), gap, offset)
    merges = merges_of(leaves) if merges is None else merges
    engine().matmul_wgmma(
        stored_a, stored_b, ta, tb, leaves, merges, slot, accumulate, period, bias, out, plan,
        **epilogue,
    )  # fmt: skip
    return out


def close(out, a, b, *, start=0.0):
    a, b = a.astype(np.float64), b.astype(np.float64)
    exact = a @ b + start
    bound = a.shape[1] * 2.0**-23 * (np.abs(a) @ np.abs(b) + np.abs(start)) + 1e-30
    if out.dtype == BFLOAT16:
        bound = bound + 2.0**-8 * np.abs(exact)
    wrong = ~(np.abs(out.astype(np.float64) - exact) <= bound)
    assert not wrong.any(), (np.argwhere(wrong)[:4], out[wrong][:4], exact[wrong][:4])


PLANS = [(64, 1, False), (128, 2, False), (192, 2, False), (256, 2, False), (256, 1, False)]


@pytest.fixture(params=[0, 1, 7])
def order(request):
    """Copies and products late, at once, now and then; a GPU's come when they come."""
    set_order = getattr(engine(), "set_fiber_order", lambda order: None)
    set_order(request.param)
    yield
    set_order(0)


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_close_to_float64(plan, ta, tb):
    for m, k, n in [(1, 1, 1), (130, 71, 67), (264, 136, 200)]:
        a, b = randoms(m, k), randoms(k, n, seed=1)
        for dtype in FLOAT32, BFLOAT16:
            close(run(a, b, ta, tb, dtype=dtype, plan=plan), a, b)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("plan", PLANS)
def test_more_k_tiles_than_stages_and_more_tiles_than_blocks(plan):
    depth = 64 * {64: 8, 128: 6}.get(plan[0], 4) + 40
    a, b = randoms(257, depth), randoms(depth, plan[0] + 8, seed=1)
    close(run(a, b, True, False, dtype=BFLOAT16, plan=plan), a, b)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("plan", [(256, 2, False), (128, 1, True)])
@pytest.mark.parametrize(
    "leaves",
    [
        [0, 64, 128],
        [0, 16, 16, 80, 250],  # whole steps, an empty leaf, an end inside a step
        [0, 3, 40, 41, 130],  # copied: leaves end inside steps
        [0, 0],
    ],
)
def test_leaves_are_summed_apart_and_merged_in_the_tree(plan, leaves):
    depth = leaves[-1]
    a, b = randoms(140, depth), randoms(depth, 130, seed=1)  # sums held in registers and not
    bias = np.linspace(-1, 1, 130, dtype=FLOAT32)
    parts = [run(a[:, i:j], b[i:j], plan=(64, 1, False)) for i, j in itertools.pairwise(leaves)]
    expected = tree_sum(parts) + bias
    for ta in False, True:
        same_bits(run(a, b, ta, not ta, leaves=leaves, bias=bias, plan=plan), expected)
    out = run(a, b, leaves=leaves, bias=bias, plan=plan, dtype=BFLOAT16)
    same_bits(out, expected.astype(BFLOAT16))


def test_bfloat16_bias():
    a, b, bias = randoms(3, 20), randoms(20, 9, seed=1), randoms(1, 9, seed=2)[0]
    expected = run(a, b) + bias.astype(FLOAT32)
    same_bits(run(a, b, bias=bias, dtype=BFLOAT16), expected.astype(BFLOAT16))


@pytest.mark.parametrize("plan", [(64, 1, False), (192, 2, False)])
@pytest.mark.parametrize(("gap", "offset"), [(0, 0), (1, 0), (8, 0), (0, 1), (3, 5), (8, 4)])
def test_alignment_changes_no_bit(plan, gap, offset):
    a, b = randoms(70, 90), randoms(90, 72, seed=1)
    for dtype in FLOAT32, BFLOAT16:
        expected = run(a, b, dtype=dtype, plan=(64, 1, False))
        for ta in False, True:
            out = run(a, b, ta, ta, dtype=dtype, plan=plan, gap=gap, offset=offset)
            same_bits(out, expected)
            if gap:  # what is between the rows stays
                assert np.isnan(out.base.astype(FLOAT32)).sum() == 64 + offset + 70 * gap


def check_epilogue(kind, m, k, n, *, dtype=BFLOAT16, gap=0, offset=0, other_gap=0, **options):
    """The bits of the product, stored, and then the op of its own; what is between rows stays."""
    a, b, other = randoms(m, k), randoms(k, n, seed=1), randoms(m, n, seed=2).astype(dtype) * 3
    plain, expected = run(a, b, dtype=dtype, **options), np.zeros_like(other)
    if kind == "gelu":
        engine().gelu_forward(plain, expected)
    elif kind == "gelu_backward":
        engine().gelu_backward(plain, other, expected)
    else:
        engine().add([other, plain], expected)
    second = placed(other, other_gap, offset)
    out = run(a, b, dtype=dtype, gap=gap, offset=offset, **{kind: second}, **options)
    same_bits(out, plain if kind == "gelu" else expected)
    same_bits(second, expected if kind == "gelu" else other)
    for x, between in ((out, gap), (second, other_gap)):
        assert np.isnan(x.base.astype(FLOAT32)).sum() == 64 + offset + m * between


EPILOGUES = ["gelu", "gelu_backward", "residual"]


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("kind", EPILOGUES)
@pytest.mark.parametrize("plan", PLANS[:4])
def test_epilogues_in_boxes(plan, kind):
    for m, k, n in [(130, 70, 72), (257, 16, plan[0] + 80)]:
        check_epilogue(kind, m, k, n, plan=plan, bias=randoms(1, n, seed=3)[0])


@pytest.mark.parametrize("kind", EPILOGUES)
@pytest.mark.parametrize("plan", [(64, 2, False), (192, 1, False)])
@pytest.mark.parametrize(
    ("gap", "offset", "other_gap"), [(8, 8, 8), (0, 0, 3), (3, 0, 0), (2, 5, 1)]
)
def test_epilogues_whatever_the_alignment(plan, kind, gap, offset, other_gap):
    for n in 72, 67:
        places = {"gap": gap, "offset": offset, "other_gap": other_gap}
        check_epilogue(kind, 70, 40, n, plan=plan, **places)
        check_epilogue(kind, 70, 40, n, plan=plan, dtype=FLOAT32, **places)


@pytest.mark.parametrize("kind", EPILOGUES)
@pytest.mark.parametrize("leaves", [[0, 64, 128], [0, 3, 40, 41, 130], [0, 0]])
def test_epilogues_after_leaves(kind, leaves):
    for plan in (256, 2, False), (64, 1, False), (128, 1, True):
        for dtype in FLOAT32, BFLOAT16:
            check_epilogue(kind, 140, leaves[-1], 130, plan=plan, leaves=leaves, dtype=dtype)


@pytest.mark.parametrize("plan", [(64, 1, False), (128, 2, False)])
@pytest.mark.parametrize("period", [1, 5, 16, 37, 100])
def test_k_in_samples_is_the_chain_over_calls_with_one_sample_each(plan, period):
    samples = 3
    a, b = randoms(140, samples * period), randoms(samples * period, 72, seed=1)
    expected = np.zeros((140, 72), FLOAT32)
    for s in range(samples):
        part = slice(s * period, (s + 1) * period)
        run(a[:, part], b[part], True, False, accumulate=True, out=expected, plan=plan)
    close(expected, a, b)
    for ta, tb in [
        (True, False),
        (False, False),
        (False, True),
    ]:  # samples; copied where not as weights'
        same_bits(run(a, b, ta, tb, period=period, plan=plan), expected)
    part = samples * period - 2  # ends inside a sample: copied too
    if part > 0:
        out = run(a[:, :part], b[:part], True, False, period=period, plan=plan)
        run(a[:, part:], b[part:], True, False, accumulate=True, out=out, plan=(64, 1, False))
        close(out, a, b)


def test_a_step_that_starts_elsewhere_has_other_bits():
    a, b = randoms(64, 200), randoms(200, 64, seed=1)
    assert (run(a, b) != run(a, b, period=37)).any()
    assert (run(a, b) == run(a, b, period=48)).all()


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("plan", [(64, 2, False), (192, 1, False), (128, 1, True)])
def test_a_stack_goes_on_from_call_to_call(plan):
    """Seven leaves of samples, over calls that end within leaves, give the tree's bits."""
    period, m, n = 24, 136, plan[0] - 14
    bounds = [0, 2, 4, 5, 7, 8, 10, 12]  # of leaves, in samples
    a, b = randoms(m, 12 * period), randoms(12 * period, n, seed=1)
    parts = [
        run(a[:, i * period : j * period], b[i * period : j * period], True, False, period=period)
        for i, j in itertools.pairwise(bounds)
    ]
    merges = merges_of(bounds)
    out = np.full((4, m, n), np.nan, FLOAT32)
    top, leaf, first = 0, 0, 0
    for stop in [1, 3, 9, 12]:  # samples a call ends before
        inner = [x for x in bounds if first < x < stop]
        cut = [first, *inner, stop]
        done = [merges[leaf + i] if cut[i + 1] in bounds else 0 for i in range(len(cut) - 1)]
        window = slice(first * period, stop * period)
        run(
            a[:, window], b[window], True, leaves=[(x - first) * period for x in cut], merges=done,
            slot=top, accumulate=first not in bounds, period=period, out=out, plan=plan,
        )  # fmt: skip
        for i, count in enumerate(done):
            ended = cut[i + 1] in bounds
            top += ended * (1 - count)
            leaf += ended
        first = stop
    assert top == 1
    same_bits(out[0], tree_sum(parts))


@pytest.mark.parametrize("leaves", [65, 257])
def test_more_leaves_than_the_arguments_hold(leaves):
    bounds = list(range(0, 16 * leaves + 1, 16))
    a, b = randoms(3, bounds[-1]), randoms(bounds[-1], 8, seed=1)
    parts = [run(a[:, i:j], b[i:j], plan=(64, 1, False)) for i, j in itertools.pairwise(bounds)]
    for plan in (64, 1, False), (64, 1, True):
        same_bits(run(a, b, leaves=bounds, plan=plan), tree_sum(parts))


def test_nan_and_infinity_stay_in_their_leaf_and_sample():
    """What lies behind the end of a sample, or beside the matrix, is multiplied by nothing."""
    a, b = randoms(20, 60), randoms(60, 30, seed=1)
    a[3, 20], b[59, 4] = np.nan, np.inf
    out = run(a, b, True, False, period=20, gap=5)
    bad = ~np.isfinite(out)
    assert bad[3].all()
    assert bad[:, 4].all()
    assert bad.sum() == 20 + 30 - 1


def test_fibers_of_9_0_multiply_with_wgmma():
    module = fibers()
    a, b = randoms(70, 96), randoms(96, 40, seed=1)
    expected = np.zeros((70, 40), FLOAT32)
    module.matmul_wgmma(a, b, False, False, [0, 48, 96], [0, 1], 0, False, 0, None, expected, None)
    rows = np.ascontiguousarray(a.T)
    assert not module.wgmma_available()
    for device in 0, 1:  # mma.sync takes the same steps
        module.set_device(device)
        try:
            assert module.wgmma_available() == (device == 1)
            out, stack = np.zeros((70, 40), FLOAT32), np.full((2, 70, 40), 7, FLOAT32)
            module.matmul(a, b, False, False, [0, 48, 96], False, 0, None, out)
            module.matmul_backward_weight(rows, b, [0, 48, 96], [0, 1], 1, False, 48, stack)
        finally:
            module.set_device(0)
        same_bits(out, expected)
        same_bits(stack[1], expected)
        assert (stack[0] == 7).all()


def test_plans():
    """What the model chooses on 132 multiprocessors: cases whose best is plain."""

    def plan(m, k, n, leaves=1, dtype=BFLOAT16):
        bounds = [k * i // leaves for i in range(leaves + 1)]
        return engine().wgmma_plan(m, n, bounds, dtype == FLOAT32, False, 132)

    assert plan(8192, 8192, 8192) == (256, 2, False)
    assert plan(8192, 768, 50304) == (256, 2, False)
    assert plan(100, 768, 50304)[1] == 1  # one row of tiles
    assert plan(768, 65536, 768, leaves=8, dtype=FLOAT32)[2]  # 18 tiles, 8 leaves
    assert not plan(8192, 8192, 8192, leaves=8)[2]
    assert plan(768, 8192, 768, dtype=FLOAT32)[0] < 256  # more, smaller tiles
