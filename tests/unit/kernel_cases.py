"""Every kernel once as a case, for rules that hold for all of them.

ROWS: axis 0 of every array in `samples` and of every output is samples that know nothing of each
other. MIXED: the same, but an output depends on all samples. CHAINS: sums over samples that a later
call continues. Arrays beyond the caches' blocks are elsewhere: here sizes are odd and small.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from kernel_checks import FLOAT32, random

from plait import _cpu

Array = np.ndarray
Outputs = tuple[Array, ...]


@dataclass(frozen=True)
class Case:
    samples: Outputs
    shared: Outputs
    call: Callable[..., Outputs]  # of samples, then shared

    def run(self) -> Outputs:
        return self.call(*self.samples, *self.shared)


def like(x: Array, shape: tuple[int, ...] | None = None, dtype: np.dtype | None = None) -> Array:
    return np.full(x.shape if shape is None else shape, 9, dtype or x.dtype)


def singles(x: Array, *shape: int) -> Array:
    return like(x, shape, FLOAT32)


def integers(shape: tuple[int, ...], below: int) -> Array:
    return np.random.default_rng(5).integers(0, below, shape).astype(np.int32)


N = 5  # samples


def matmul(t: np.dtype) -> Case:
    def call(a: Array, b: Array, bias: Array) -> Outputs:
        out = like(a, (len(a) * 31, 67))
        rows = a.reshape(-1, 90)
        _cpu.matmul(rows, b, False, False, [0, 31, 60, 90], False, 0, bias, out)
        return (out.reshape(len(a), 31, 67),)

    return Case((random((N, 31, 90), t),), (random((90, 67), t), random((67,), t)), call)


def epilogue(kind: str) -> Callable[[np.dtype], Case]:
    def make(t: np.dtype) -> Case:
        def call(a: Array, other: Array, b: Array) -> Outputs:
            out, second = like(a, (len(a) * 31, 67)), other.reshape(-1, 67).copy()
            rows = a.reshape(-1, 90)
            leaves = [0, 31, 90]
            _cpu.matmul(rows, b, False, False, leaves, False, 0, None, out, **{kind: second})
            return out.reshape(other.shape), second.reshape(other.shape)

        a, other = random((N, 31, 90), t), random((N, 31, 67), t, 2)
        return Case((a, other), (random((90, 67), t),), call)

    return make


def add(t: np.dtype) -> Case:
    def call(*x: Array) -> Outputs:
        out = like(x[0])
        _cpu.add(list(x), out)
        return (out,)

    return Case(tuple(random((N, 17, 900), t, seed) for seed in range(3)), (), call)


def elementwise(name: str, inputs: int, outputs: int) -> Callable[[np.dtype], Case]:
    def make(t: np.dtype) -> Case:
        def call(*x: Array) -> Outputs:
            out = tuple(like(x[0]) for _ in range(outputs))
            getattr(_cpu, name)(*x, *out)
            return out

        return Case(tuple(random((N, 17, 900), t, s, 2) for s in range(inputs)), (), call)

    return make


def rope(t: np.dtype) -> Case:
    def call(x: Array) -> Outputs:
        out = like(x)
        _cpu.rope(x, 1e4, 3, False, out)
        return (out,)

    return Case((random((N, 37, 3, 26), t),), (), call)


def norm(name: str, backward: bool, residual: bool = False) -> Callable[[np.dtype], Case]:
    """residual: of x + a residual, with the gradient of that sum's other use."""
    center = name == "layer"

    def make(t: np.dtype) -> Case:
        x, weight, bias = random((N, 29, 130), t, 1, 3), random((130,), t, 2), random((130,), t, 3)
        more = (random(x.shape, t, 5),) if residual else ()

        def rows(x: Array) -> Array:
            return x.reshape(-1, 130)

        def forward(x: Array, *rest: Array) -> Outputs:
            *added, weight, bias = rest
            out, moments = like(x), [singles(x, len(rows(x))) for _ in range(1 + center)]
            extra, stream = ((bias,) if center else ()), [like(x) for _ in added]
            getattr(_cpu, f"{name}_norm_forward")(
                rows(x), rows(added[0]) if added else None, weight, *extra, 1e-5,
                rows(stream[0]) if added else None, rows(out), *moments,
            )  # fmt: skip
            return out, *(m.reshape(len(x), 29) for m in moments), *stream

        def call(grad: Array, x: Array, *rest: Array) -> Outputs:
            *moments, weight = rest
            added, moments = (moments[:1], moments[1:]) if residual else ([], moments)
            grad_x = like(x)
            getattr(_cpu, f"{name}_norm_backward")(
                rows(grad), rows(added[0]) if added else None, rows(x), weight,
                *(m.reshape(-1) for m in moments), rows(grad_x),
            )  # fmt: skip
            return (grad_x,)

        if not backward:
            return Case((x, *more), (weight, bias), forward)
        moments = forward(x, weight, bias)[1:]
        return Case((random(x.shape, t, 4), x, *more, *moments), (weight,), call)

    return make


SCALE = 0.7  # rounded upwards it is another float32


def attend(q: Array, k: Array, v: Array) -> Outputs:
    out, log_sum = like(q), singles(q, len(q), q.shape[2], q.shape[1])
    _cpu.attention_forward(q, k, v, True, SCALE, out, log_sum)
    return out, log_sum


def attention(t: np.dtype) -> Case:
    return Case(_heads(t), (), attend)


def attention_backward(t: np.dtype) -> Case:
    def call(*x: Array) -> Outputs:
        grads = tuple(like(a) for a in x[1:4])
        _cpu.attention_backward(*x, True, SCALE, *grads)
        return grads

    q, k, v = _heads(t)
    return Case((random(q.shape, t, 4), q, k, v, *attend(q, k, v)), (), call)


def _heads(t: np.dtype) -> Outputs:
    """77 queries of 4 heads, 77 keys of 2: more than one block, and one that is not full."""
    return tuple(random((N, 77, heads, 20), t, seed) for seed, heads in enumerate((4, 2, 2)))


def embedding(t: np.dtype) -> Case:
    def call(tokens: Array, weight: Array) -> Outputs:
        out = like(weight, (tokens.size, 33))
        _cpu.embedding_forward(tokens.ravel(), weight, 10, out)
        return (out.reshape(*tokens.shape, 33),)

    return Case((integers((N, 40), 60),), (random((40, 33), t),), call)


VOCABULARY, FIRST = 150, 20  # the shard has columns 20 ..., of which those from 150 on are padding


def statistics(logits: Array, targets: Array) -> Outputs:
    found = tuple(singles(logits, len(logits)) for _ in range(3))
    _cpu.cross_entropy_statistics(logits, targets, FIRST, VOCABULARY, *found)
    return found


def losses(t: np.dtype) -> Case:
    def call(*x: Array) -> Outputs:
        out = singles(x[0], len(x[0]))
        _cpu.cross_entropy_loss(*x, out)
        return (out,)

    logits, targets = _logits(t)
    return Case((*statistics(logits, targets), targets), (), call)


def cross_entropy_backward(t: np.dtype) -> Case:
    def call(logits: Array, targets: Array, peak: Array, total: Array) -> Outputs:
        grad = like(logits)
        _cpu.cross_entropy_backward(logits, targets, peak, total, FIRST, VOCABULARY, SCALE, grad)
        return (grad,)

    logits, targets = _logits(t)
    return Case((logits, targets, *statistics(logits, targets)[:2]), (), call)


def argmax(t: np.dtype) -> Case:
    def call(x: Array) -> Outputs:
        value, index = singles(x, len(x)), like(x, (len(x),), np.dtype(np.int32))
        _cpu.argmax(x, 151, value, index)
        return value, index

    return Case((_logits(t)[0],), (), call)


def _logits(t: np.dtype) -> Outputs:
    targets = integers((40,), VOCABULARY)
    targets[::7] = -1
    return random((40, 160), t, scale=3), targets


def conv(backward: bool) -> Callable[[np.dtype], Case]:
    def make(t: np.dtype) -> Case:
        def call(image: Array, weight: Array) -> Outputs:
            out = like(image, (len(image), *((9, 8, 11) if backward else (5, 4, 35))))
            kernel = _cpu.conv2d_backward if backward else _cpu.conv2d_forward
            leaves = [0, 13, 35] if backward else [0, 4, 11]
            kernel(image, weight, False, 2, 1, leaves, out)
            return (out,)

        image = random((N, 5, 4, 35) if backward else (N, 9, 8, 11), t)
        return Case((image,), (random((35, 3, 3, 11), t, 1),), call)

    return make


def batch_norm(t: np.dtype, training: bool = True) -> Case:
    def call(x: Array, weight: Array, bias: Array, *known: Array) -> Outputs:
        out, flat = like(x), x.reshape(-1, 70)
        moments = tuple(singles(x, 70) for _ in range(2)) if training else known
        _cpu.batch_norm_forward(flat, weight, bias, 1e-5, training, *moments, out.reshape(-1, 70))
        return out, *(moments if training else ())

    x, weight, bias = random((N, 61, 70), t, 1, 3), random((70,), t, 2), random((70,), t, 3)
    known = () if training else (random((70,), seed=4), np.abs(random((70,), seed=5)))
    return Case((x,), (weight, bias, *known), call)


def batch_norm_backward(t: np.dtype) -> Case:
    def call(grad: Array, x: Array, weight: Array, *moments: Array) -> Outputs:
        grad_x = like(x)
        flat = [a.reshape(-1, 70) for a in (grad, x)]
        _cpu.batch_norm_backward(*flat, weight, *moments, 1e-5, grad_x.reshape(-1, 70))
        return (grad_x,)

    case = batch_norm(t)
    _, mean, variance = case.run()
    (x,), (weight, _) = case.samples, case.shared
    return Case((random(x.shape, t, 4), x), (weight, mean, variance), call)


def max_pool(t: np.dtype) -> Case:
    def call(x: Array) -> Outputs:
        shape = len(x), 6, 5, 17
        out, index = like(x, shape), like(x, shape, np.dtype(np.int32))
        _cpu.max_pool_forward(x, 3, 2, 1, out, index)
        return out, index

    return Case((random((N, 11, 9, 17), t),), (), call)


def max_pool_backward(t: np.dtype) -> Case:
    def call(grad: Array, index: Array) -> Outputs:
        grad_x = like(grad, (len(grad), 11, 9, 17))
        _cpu.max_pool_backward(grad, index, 3, 2, 1, grad_x)
        return (grad_x,)

    out, index = max_pool(t).run()
    return Case((random(out.shape, t, 3), index), (), call)


def mean_pool(backward: bool) -> Callable[[np.dtype], Case]:
    def make(t: np.dtype) -> Case:
        def call(x: Array) -> Outputs:
            out = like(x, (len(x), 71, 33) if backward else (len(x), 33))
            (_cpu.mean_pool_backward if backward else _cpu.mean_pool_forward)(x, out)
            return (out,)

        return Case((random((N, 33) if backward else (N, 71, 33), t),), (), call)

    return make


ROWS: dict[str, Callable[[np.dtype], Case]] = {
    "matmul": matmul,
    "matmul (gelu)": epilogue("gelu"),
    "matmul (gelu_backward)": epilogue("gelu_backward"),
    "matmul (residual)": epilogue("residual"),
    "add": add,
    "gelu_forward": elementwise("gelu_forward", 1, 1),
    "gelu_backward": elementwise("gelu_backward", 2, 1),
    "relu_forward": elementwise("relu_forward", 1, 1),
    "relu_backward": elementwise("relu_backward", 2, 1),
    "swiglu_forward": elementwise("swiglu_forward", 2, 1),
    "swiglu_backward": elementwise("swiglu_backward", 3, 2),
    "rope": rope,
    "layer_norm_forward": norm("layer", False),
    "layer_norm_backward": norm("layer", True),
    "rms_norm_forward": norm("rms", False),
    "rms_norm_backward": norm("rms", True),
    "layer_norm_forward (residual)": norm("layer", False, residual=True),
    "layer_norm_backward (residual)": norm("layer", True, residual=True),
    "rms_norm_forward (residual)": norm("rms", False, residual=True),
    "rms_norm_backward (residual)": norm("rms", True, residual=True),
    "attention_forward": attention,
    "attention_backward": attention_backward,
    "embedding_forward": embedding,
    "cross_entropy_statistics": lambda t: Case(_logits(t), (), statistics),
    "cross_entropy_loss": losses,
    "cross_entropy_backward": cross_entropy_backward,
    "argmax": argmax,
    "conv2d_forward": conv(False),
    "conv2d_backward": conv(True),
    "batch_norm_forward (evaluation)": lambda t: batch_norm(t, training=False),
    "max_pool_forward": max_pool,
    "max_pool_backward": max_pool_backward,
    "mean_pool_forward": mean_pool(False),
    "mean_pool_backward": mean_pool(True),
}
# Others round on their way, too: attention what it multiplies (test_numerics_fusion), a matmul what
# its epilogue gets (test_epilogue), a norm the stream (test_norm).
ONCE = [
    name
    for name in ROWS
    if not name.startswith(("attention", "matmul ("))
    if "(residual)" not in name
]
MIXED = {"batch_norm_forward": batch_norm, "batch_norm_backward": batch_norm_backward}
