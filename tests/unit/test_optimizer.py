"""Optimizer steps against float64; their roundings depend on no path, thread, cut or aliasing."""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from kernel_bits import assert_cpu_bits
from kernel_checks import PATHS

from plait import _cpu, optim

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)
best = _cpu.isa()
paths = PATHS[: PATHS.index(best) + 1]
SIZES = [0, 1, 7, 1023, 1025, 70_001]


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    _cpu.set_isa(best)
    _cpu.set_threads(1)


def randoms(n, seed):
    return np.random.default_rng([seed, n]).standard_normal(n).astype(np.float32)


ADAMW = {"scale": 0.5, "rate": 3e-3, "beta1": 0.9, "beta2": 0.98, "epsilon": 1e-8, "decay": 0.1}


def adamw_state(n):
    return [randoms(n, 1), 0.1 * randoms(n, 2), 0.1 * np.abs(randoms(n, 3))]


def adamw(grad, state, weight, step, scale, rate, beta1, beta2, epsilon, decay, kernels=_cpu):
    kernels.adamw(grad, scale, rate, beta1, beta2, epsilon, decay, step, *state, weight)


def adamw_reference(grad, state, step, scale, rate, beta1, beta2, epsilon, decay):
    """Algorithm 2 of Loshchilov and Hutter (2019), in float64 from the float32 settings."""
    rate, beta1, beta2, decay = (float(np.float32(v)) for v in (rate, beta1, beta2, decay))
    w, m, v = (x.astype(np.float64) for x in state)
    g = grad.astype(np.float64) * scale
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return w - rate * decay * w - rate * m_hat / (np.sqrt(v_hat) + epsilon), m, v


@pytest.mark.parametrize("isa", paths)
@pytest.mark.parametrize("step", [1, 2, 1000, 10**9])
def test_adamw_against_float64(isa, step):
    _cpu.set_isa(isa)
    for n in SIZES:
        grad, state, weight = randoms(n, 0), adamw_state(n), np.zeros(n, bfloat16)
        expected = adamw_reference(grad, state, step, **ADAMW)
        adamw(grad, state, weight, step, **ADAMW)
        for got, exact in zip(state, expected, strict=True):
            np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(weight, state[0].astype(bfloat16))


def test_adamw_over_many_steps(kernels):
    n = 100
    state, weight = (
        [randoms(n, 1), np.zeros(n, np.float32), np.zeros(n, np.float32)],
        np.zeros(n, np.float32),
    )
    exact = [x.astype(np.float64) for x in state]
    for step in range(1, 101):
        grad = randoms(n, 100 + step)
        adamw(grad, state, weight, step, **ADAMW, kernels=kernels)
        exact = list(adamw_reference(grad, exact, step, **ADAMW))
    np.testing.assert_allclose(state[0], exact[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(weight, state[0])


def sgd(grad, state, weight, scale=0.5, rate=0.1, mu=0.9, decay=0.01, kernels=_cpu):
    kernels.sgd(grad, scale, rate, mu, decay, *state, weight)


@pytest.mark.parametrize("isa", paths)
def test_sgd_against_float64(isa):
    _cpu.set_isa(isa)
    for n in SIZES:
        grad, state, weight = randoms(n, 0), [randoms(n, 1), randoms(n, 2)], np.zeros(n, bfloat16)
        w, m = (x.astype(np.float64) for x in state)
        m = 0.9 * m + 0.5 * grad.astype(np.float64)
        w = w - 0.1 * (m + 0.01 * w)
        sgd(grad, state, weight)
        np.testing.assert_allclose(state[1], m, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(state[0], w, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(weight, state[0].astype(bfloat16))


def test_every_rounding_is_the_stated_one(kernels):
    """ops.hpp writes the steps as single float32 operations; numpy does the same ones."""
    n, f = 5000, np.float32
    grad, (w, m, v) = randoms(n, 0), adamw_state(n)
    state = [w.copy(), m.copy(), v.copy()]
    adamw(grad, state, state[0], 3, **ADAMW, kernels=kernels)
    rate, beta1, beta2, decay = (
        float(f(ADAMW[key])) for key in ("rate", "beta1", "beta2", "decay")
    )
    g = grad * f(ADAMW["scale"])
    m = f(beta1) * m + f(1 - beta1) * g
    v = f(beta2) * v + f(1 - beta2) * (g * g)
    step = m / (np.sqrt(v) * f(1 / np.sqrt(1 - beta2**3)) + f(ADAMW["epsilon"]))
    w = w * f(1 - rate * decay) - f(rate / (1 - beta1**3)) * step
    for got, expected in zip(state, (w, m, v), strict=True):
        np.testing.assert_array_equal(got, expected)

    w, m = adamw_state(n)[:2]
    state = [w.copy(), m.copy()]
    sgd(grad, state, state[0], kernels=kernels)
    m = f(0.9) * m + grad * f(0.5)
    np.testing.assert_array_equal(state[1], m)
    np.testing.assert_array_equal(state[0], w - f(0.1) * (m + f(0.01) * w))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_bits_depend_on_neither_path_threads_cuts_nor_aliasing(name):
    n = 70_001

    def update(grad, state, weight):
        if name == "adamw":
            adamw(grad, state, weight, 7, **ADAMW)
        else:
            sgd(grad, state, weight)

    fresh = adamw_state(n) if name == "adamw" else adamw_state(n)[:2]
    grad = randoms(n, 0)
    expected = [x.copy() for x in fresh]
    update(grad, expected, np.zeros(n, bfloat16))
    for isa in paths:
        _cpu.set_isa(isa)
        for threads in (1, 3):
            _cpu.set_threads(threads)
            state = [x.copy() for x in fresh]
            update(grad, state, state[0])  # the weight is the master
            cut = [x.copy() for x in fresh]
            weight = np.zeros(n, np.float32)
            for part in (slice(0, 13), slice(13, 5000), slice(5000, n)):
                update(grad[part], [x[part] for x in cut], weight[part])
            np.testing.assert_array_equal(weight, cut[0])
            for got in (state, cut):
                for x, y in zip(got, expected, strict=True):
                    np.testing.assert_array_equal(x.view(np.uint32), y.view(np.uint32))


@pytest.mark.cuda
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("weight_type", [float32, bfloat16])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 1027, 3000])
def test_the_cpus_bits(n, weight_type, skip):
    """Packs of 16 bytes with a rest, unaligned shards; the weight may be the master."""

    def call(kernels):
        grad = randoms(n + skip, 0)[skip:]
        state = [x[skip:] for x in adamw_state(n + skip)]
        twin = [x[skip:] for x in adamw_state(n + skip)][:2]
        weight = np.zeros(n + skip, weight_type)[skip:]
        adamw(grad, state, weight, 7, **ADAMW, kernels=kernels)
        sgd(grad, twin, twin[0] if weight_type == float32 else weight, kernels=kernels)
        return *state, *twin, weight

    assert_cpu_bits(call)


def test_a_gradient_that_is_not_a_number_stays_where_it_is(kernels):
    n = 100
    grad, state = randoms(n, 0), adamw_state(n)
    grad[17] = np.nan
    adamw(grad, state, state[0], 1, **ADAMW, kernels=kernels)
    for x in state:
        assert np.isnan(x[17])
        assert np.isfinite(np.delete(x, 17)).all()


def test_errors_name_the_shapes(kernels):
    grad, state = randoms(5, 0), adamw_state(5)
    with pytest.raises(ValueError, match=r"grad is \(4,\) float32.*master \(5,\) float32"):
        adamw(grad[:4], state, state[0], 1, **ADAMW, kernels=kernels)
    with pytest.raises(ValueError, match="step is 0"):
        adamw(grad, state, state[0], 0, **ADAMW, kernels=kernels)
    with pytest.raises(ValueError, match="beta2 is 1"):
        adamw(grad, state, state[0], 1, **{**ADAMW, "beta2": 1.0}, kernels=kernels)
    with pytest.raises(ValueError, match="expected float32"):
        adamw(grad.astype(bfloat16), state, state[0], 1, **ADAMW, kernels=kernels)
    with pytest.raises(ValueError, match=r"weight is \(3,\)"):
        sgd(grad, state[:2], np.zeros(3, bfloat16), kernels=kernels)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        sgd(grad, state[:2], np.zeros(5, np.int32), kernels=kernels)


@pytest.mark.parametrize(("make", "arguments", "message"), [
    (optim.AdamW, {"learning_rate": -1}, "learning_rate must be a number of at least 0, got -1"),
    (optim.AdamW, {"learning_rate": float("nan")}, "learning_rate .* got nan"),
    (optim.AdamW, {"learning_rate": "a"}, "learning_rate .* got 'a'"),
    (optim.AdamW, {"betas": 0.9}, "betas must be two numbers, got 0.9"),
    (optim.AdamW, {"betas": (0.9, 1.0)}, "betas must be a number of at least 0 and below 1, got 1"),
    (optim.SGD, {"momentum": 1.5}, "momentum .* got 1.5"),
])  # fmt: skip
def test_settings_that_cannot_be(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
