"""Attention against float64: ragged blocks, grouped heads, fused buffers, bits of a row."""

import numpy as np
import pytest
from kernel_backends import in_orders
from kernel_checks import (
    BFLOAT16,
    STORAGE,
    assert_near,
    assert_same_bits,
    bits,
    random,
    strided,
    wide,
)

from plait import _cpu

# samples, queries, keys, heads, groups, size
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 5, 5, 2, 2, 8),
    (1, 64, 64, 1, 1, 64),
    (1, 65, 129, 4, 2, 32),
    (2, 130, 70, 3, 1, 20),
    (1, 1, 200, 2, 1, 64),
    (1, 200, 1, 2, 2, 17),
    (1, 17, 81, 2, 1, 48),
    (1, 100, 100, 1, 1, 256),
    (1, 33, 150, 2, 1, 128),
    (1, 70, 70, 2, 1, 100),
    (0, 4, 4, 1, 1, 8),
    (2, 0, 4, 1, 1, 8),
    (2, 4, 0, 1, 1, 8),
]


def inputs(shape, dtype):
    b, sq, sk, h, g, d = shape
    return (
        random((b, sq, h, d), dtype, seed=1),
        random((b, sk, g, d), dtype, seed=2),
        random((b, sk, g, d), dtype, seed=3),
        random((b, sq, h, d), dtype, seed=4),
    )


def forward(kernels, q, k, v, causal, scale):
    out = np.full(q.shape, 9, np.float32).astype(q.dtype)
    log_sum = np.full((q.shape[0], q.shape[2], q.shape[1]), 9, np.float32)
    kernels.attention_forward(q, k, v, causal, scale, out, log_sum)
    return out, log_sum


def backward(kernels, grad, q, k, v, out, log_sum, causal, scale):
    grads = [np.full(x.shape, 9, np.float32).astype(x.dtype) for x in (q, k, v)]
    kernels.attention_backward(grad, q, k, v, out, log_sum, causal, scale, *grads)
    return grads


def reference(q, k, v, grad, causal, scale):
    """out, log_sum, grad_q, grad_k, grad_v in float64; and of each but log_sum the sum of its
    terms' magnitudes."""
    q, k, v, grad = (wide(x).transpose(0, 2, 1, 3) for x in (q, k, v, grad))  # (B, H, S, D)
    shared = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, shared, 1), np.repeat(v, shared, 1)
    scores = scale * q @ k.swapaxes(-1, -2)
    queries, keys = scores.shape[-2:]
    if causal:
        hidden = np.arange(keys)[None, :] > np.arange(queries)[:, None] + keys - queries
        scores[..., hidden] = -np.inf
    with np.errstate(divide="ignore"):
        peak = np.maximum(scores.max(-1, keepdims=True, initial=-np.inf), -1e300)
        e = np.exp(scores - peak)
        total = e.sum(-1, keepdims=True)
        log_sum = (np.log(total) + peak)[..., 0]
    p = e / np.where(total == 0, 1, total)
    grad_p = grad @ v.swapaxes(-1, -2)
    grad_scores = p * (grad_p - (p * grad_p).sum(-1, keepdims=True)) * scale

    def products(p, ds, q, k, v, grad):
        found = [p @ v, ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ grad]
        for i in (2, 3):  # sum over the heads of a group
            b, h, s, d = found[i].shape
            found[i] = found[i].reshape(b, h // shared, shared, s, d).sum(2)
        return [x.transpose(0, 2, 1, 3) for x in found]

    arrays = p, grad_scores, q, k, v, grad
    out, *grads = products(*arrays)
    return [out, log_sum, *grads], products(*map(np.abs, arrays))


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward(kernels, shape, causal, dtype):
    q, k, v, grad = inputs(shape, dtype)
    scale = 1 / np.sqrt(shape[-1])
    out, log_sum = forward(kernels, q, k, v, causal, scale)
    expected, sizes = reference(q, k, v, grad, causal, scale)
    near(out, expected[0], 32, 2, sizes[0])
    empty = np.isneginf(expected[1])
    assert np.array_equal(np.isneginf(log_sum), empty)
    assert_near(np.where(empty, 0, log_sum), np.where(empty, 0, expected[1]), 12)
    grads = backward(kernels, grad, q, k, v, out, log_sum, causal, scale)
    # backward sees `out` as it was stored: bfloat16 roundings in it move delta
    rounding = 1.0 if dtype.itemsize == 4 else 2.0**15 * sizes[0].max(initial=0)
    for got, exact, size in zip(grads, expected[2:], sizes[1:], strict=True):
        near(got, exact, 64 + rounding, 4, size)


def near(got, exact, units, magnitude, size):
    """As assert_near; in bfloat16 each term may also be off by a rounding of its first factor."""
    if got.dtype == BFLOAT16:
        assert_near(got, exact, 2.0**16, 1.01 * size + units * magnitude / 2.0**16)
    else:
        assert_near(got, exact, units, magnitude)


def test_rows_without_a_visible_key_are_zero(kernels):
    q, k, v, grad = inputs((1, 100, 10, 1, 1, 16), STORAGE[0])
    out, log_sum = forward(kernels, q, k, v, True, 0.25)
    assert not np.any(out[:, :90])
    assert np.all(log_sum[..., :90] == -np.inf)
    grads = backward(kernels, grad, q, k, v, out, log_sum, True, 0.25)
    assert not np.any(grads[0][:, :90])
    assert all(np.all(np.isfinite(x)) for x in grads)


@pytest.mark.parametrize("dtype", STORAGE)
def test_views_of_one_fused_buffer(kernels, dtype):
    b, s, h, d = 2, 70, 2, 32
    fused = random((b, s, 3, h, d), dtype)
    q, k, v = (fused[:, :, i] for i in range(3))
    out, log_sum = forward(kernels, q, k, v, True, 0.2)
    plain, plain_log = forward(kernels, q.copy(), k.copy(), v.copy(), True, 0.2)
    assert bits(out) == bits(plain)
    assert bits(log_sum) == bits(plain_log)
    grad = strided(random((b, s, h, d), dtype, seed=5))
    grad_fused = np.full_like(fused, 9)
    views = [grad_fused[:, :, i] for i in range(3)]
    kernels.attention_backward(grad, q, k, v, strided(out), log_sum, True, 0.2, *views)
    expected = backward(kernels, grad.copy(), q.copy(), k.copy(), v.copy(), out, log_sum, True, 0.2)
    for view, x in zip(views, expected, strict=True):
        assert bits(view) == bits(x)


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("size", [32, 40])
def test_a_row_depends_on_no_other(kernels, size, dtype):
    """Samples, heads and, with a causal mask, later queries and keys come and go: the bits stay."""
    q, k, v, _ = inputs((2, 130, 130, 2, 2, size), dtype)
    out, log_sum = forward(kernels, q, k, v, True, 0.3)
    one, _ = forward(kernels, q[1:2, :, 1:], k[1:2, :, 1:], v[1:2, :, 1:], True, 0.3)
    assert bits(one) == bits(out[1:2, :, 1:])
    for shorter in (1, 64, 129):
        less, less_log = forward(kernels, q[:, :shorter], k[:, :shorter], v[:, :shorter], True, 0.3)
        assert bits(less) == bits(out[:, :shorter])
        assert bits(less_log) == bits(log_sum[..., :shorter])
    full, _ = forward(kernels, q, k, v, False, 0.3)
    some, _ = forward(kernels, q[:, :77], k, v, False, 0.3)
    assert bits(some) == bits(full[:, :77])


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("size", [32, 72])
def test_gradients_depend_on_no_other_sample_or_group(kernels, size, dtype):
    q, k, v, grad = inputs((2, 40, 70, 4, 2, size), dtype)
    out, log_sum = forward(kernels, q, k, v, True, 0.3)
    grads = backward(kernels, grad, q, k, v, out, log_sum, True, 0.3)
    q, grad, out, log_sum = q[1:, :, 2:], grad[1:, :, 2:], out[1:, :, 2:], log_sum[1:, 2:].copy()
    one = backward(kernels, grad, q, k[1:, :, 1:], v[1:, :, 1:], out, log_sum, True, 0.3)
    for got, whole, part in zip(one, grads, (2, 1, 1), strict=True):
        assert bits(got) == bits(whole[1:, :, part:])


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("size", [40, 100])
def test_order_of_threads(kernels, size, dtype):
    q, k, v, grad = inputs((1, 70, 90, 2, 1, size), dtype)

    def call():
        out, log_sum = forward(kernels, q, k, v, True, 0.3)
        grads = backward(kernels, grad, q, k, v, out, log_sum, True, 0.3)
        return [bits(x) for x in (out, log_sum, *grads)]

    results = in_orders(kernels, call)
    assert all(got == results[0] for got in results)


@pytest.mark.parametrize("dtype", STORAGE)
def test_gradients_of_keys_chain_over_queries_and_heads(kernels, dtype):
    """Grouped heads in order are one long chain: as one head that sees the queries of all."""
    b, s, h, d = 1, 64, 3, 16
    q, k, v, grad = inputs((b, s, 50, h, 1, d), dtype)
    out, log_sum = forward(kernels, q, k, v, False, 0.25)
    grads = backward(kernels, grad, q, k, v, out, log_sum, False, 0.25)
    q, grad, out = (x.transpose(0, 2, 1, 3).reshape(b, h * s, 1, d) for x in (q, grad, out))
    one = backward(kernels, grad, q, k, v, out, log_sum.reshape(b, 1, h * s), False, 0.25)
    assert bits(one[1]) == bits(grads[1])
    assert bits(one[2]) == bits(grads[2])


def test_large_scores_and_nan(kernels):
    q, k, v, _ = inputs((1, 70, 70, 1, 1, 16), STORAGE[0])
    out, log_sum = forward(kernels, q * 1000, k * 100, v, False, 1.0)
    expected, _ = reference(q * 1000, k * 100, v, v, False, 1.0)
    assert_near(log_sum, expected[1], 16, 1e6)
    assert_near(out, expected[0], 2.0**24 * 0.5)  # scores carry errors of 0.1; what matters: finite
    v[0, 3, 0, 5] = np.nan
    out, _ = forward(kernels, q, k, v, False, 1.0)
    assert np.all(np.isnan(out[..., 5]))
    assert np.all(np.isfinite(np.delete(out, 5, -1)))
    q[0, 7] = np.nan
    out, log_sum = forward(kernels, q, k, np.zeros_like(v), False, 1.0)
    assert np.all(np.isnan(out[0, 7]))
    assert np.isnan(log_sum[0, 0, 7])
    assert np.all(np.isfinite(np.delete(out, 7, 1)))


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("scale", [1.0, 2.0**-124])
@pytest.mark.parametrize("shape", [(2, 70, 90, 4, 2, 20), (1, 130, 130, 3, 3, 64)])
def test_bits(shape, scale, dtype):
    """Also where values and sums are denormal, which pairs and blocks take for zeros."""
    q, k, v, grad = inputs(shape, dtype)
    v, grad = ((x * np.float32(scale)).astype(dtype) for x in (v, grad))

    def call():
        out, log_sum = forward(_cpu, q, k, v, True, 0.2)
        return [out, log_sum, *backward(_cpu, grad, q, k, v, out, log_sum, True, 0.2)]

    assert_same_bits(call)


def test_errors(kernels):
    q, k, v, _ = inputs((1, 4, 4, 4, 4, 8), STORAGE[0])
    with pytest.raises(ValueError, match="4 heads are no multiple of 3 key-value heads"):
        forward(kernels, q, k[:, :, :3], v[:, :, :3], False, 1.0)
    with pytest.raises(ValueError, match=r"v is \(1, 3, 4, 8\) float32, expected \(1, 4, 4, 8\)"):
        forward(kernels, q, k, v[:, :3], False, 1.0)
