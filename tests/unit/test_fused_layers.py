"""Linear layers that also do GELU, its gradient and the residual connection give the bits of one op
after the other: values, gradients of inputs and of parameters."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernel_checks import BFLOAT16, FLOAT32, STORAGE, random

from plait import nn, ops
from plait.autograd import Tape, Tensor
from plait.comm import Leaves
from plait.comm.alone import Alone
from plait.nn import Build, Recomputed
from plait.ops.position import Share
from plait.ops.sums import fan_in

B, S, C, HIDDEN = 3, 5, 12, 26
Array = np.ndarray
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Layer):
    def __init__(self, forward: Forward, leaves: int, dtype: np.dtype, dropout: float = 0.0):
        build = Build(Alone(Leaves.even(leaves, 1)), "net", 1)
        self.norm = nn.LayerNorm(build.at("norm"), C)
        self.up = nn.ColumnLinear(build.at("up"), C, HIDDEN)
        self.down = nn.RowLinear(build.at("down"), HIDDEN, C)
        self.dropout = nn.Dropout(build, dropout, 4)
        self.forward, self.share = forward, Share(B, Leaves.even(2, 1), 0, B)
        for seed, p in enumerate(self.parameters()):
            split = p.name.startswith("net.up") or p.name == "net.down.weight"
            p.array = random(p.local_shape, dtype, seed)
            shape = (self.share.slots, *(() if split else (leaves,)), *p.local_shape)
            p.grads = np.full(shape, np.nan, FLOAT32)

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(self, x)

    def mlp(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.down(*self.up.gelu(y), residual)

    def run(self, dtype: np.dtype, recomputed: bool = False) -> list[Array]:
        """The output, the gradients of the input and of all parameters."""
        (position,) = self.share.microbatches(0, 7)
        with Tape(position, fan_in) as tape:
            out = (Recomputed(self) if recomputed else self)(
                tape.input(random((B, S, C), dtype, 9))
            )
        grads = tape.backward(out, random((B, S, C), dtype, 10))
        return [
            out.array,
            *(g for g in grads if g is not None),
            *(p.grads for p in self.parameters()),
        ]


def in_turn(net: Net, x: Tensor) -> Tensor:
    y: Any = ops.GELU.apply(net.up(net.norm(x)))
    z: Tensor = ops.Add.apply(x, net.dropout(net.down(y)))
    return z


def in_matmuls(net: Net, x: Tensor) -> Tensor:
    return net.dropout.residual(x, net.mlp, net.norm(x))


def same(found: list[Array], expected: list[Array]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("leaves", [1, 3])
def test_the_bits_of_one_op_after_the_other(leaves: int, dtype: np.dtype) -> None:
    expected = Net(in_turn, leaves, dtype).run(dtype)
    assert all(np.isfinite(x.astype(FLOAT32)).all() for x in expected)
    for recomputed in (False, True):
        same(Net(in_matmuls, leaves, dtype).run(dtype, recomputed), expected)


def test_what_is_dropped_keeps_the_residual_apart() -> None:
    expected = Net(in_turn, 2, BFLOAT16, 0.4).run(BFLOAT16)
    same(Net(in_matmuls, 2, BFLOAT16, 0.4).run(BFLOAT16), expected)
    assert expected[0].tobytes() != Net(in_turn, 2, BFLOAT16).run(BFLOAT16)[0].tobytes()


class NormedNet(Net):
    """What comes out of a block: the stream, and its norm."""

    def __init__(self, norm: Any, *given: Any, **more: Any):
        super().__init__(*given, **more)
        self.norm2 = norm(Build(self.norm.comm, "net.norm2"), C)
        for seed, p in enumerate(self.norm2.parameters(), 20):
            p.array = random((C,), self.up.weight.array.dtype, seed)
            p.grads = np.full((self.share.slots, self.norm.comm.leaves.count, C), np.nan, FLOAT32)

    def both(self, dtype: np.dtype, used: tuple[bool, bool], recomputed: bool) -> list[Array]:
        (position,) = self.share.microbatches(0, 7)
        with Tape(position, fan_in) as tape:
            layer: Any = Recomputed(self) if recomputed else self
            outputs = layer(tape.input(random((B, S, C), dtype, 9)))
        grads = [random((B, S, C), dtype, 10), random((B, S, C), dtype, 11)]
        given = [(y, g) for y, g, use in zip(outputs, grads, used, strict=True) if use]
        before = [g.tobytes() for g in grads]
        (grad,) = tape.backward([y for y, _ in given], [g for _, g in given])
        assert [g.tobytes() for g in grads] == before  # nothing is written over them
        assert grad is not None
        for p in self.norm2.parameters() if not used[1] else ():
            p.skip(position)
        return [*(y.array for y in outputs), grad, *(p.grads for p in self.parameters())]


def norm_in_turn(net: Any, x: Tensor) -> Any:
    y: Any = ops.GELU.apply(net.up(net.norm(x)))
    z: Tensor = ops.Add.apply(x, net.dropout(net.down(y)))
    return z, net.norm2(z)


def norm_in_one(net: Any, x: Tensor) -> Any:
    return net.dropout.normed(x, Branch(net), net.norm(x), net.norm2)


class Branch:
    """net's MLP, as a layer that can go on to a norm."""

    def __init__(self, net: NormedNet):
        self.net = net

    def __call__(self, y: Tensor) -> Tensor:
        return self.net.mlp(y)

    def normed(self, y: Tensor, residual: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
        activated, x = self.net.up.gelu(y)
        return self.net.down.normed(activated, residual, norm, x)


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_the_norm_that_follows(norm: Any, dtype: np.dtype) -> None:
    every = itertools.product((1, 3), ((True, True), (True, False), (False, True)), (False, True))
    for leaves, used, recomputed in every:
        expected = NormedNet(norm, norm_in_turn, leaves, dtype).both(dtype, used, False)
        same(NormedNet(norm, norm_in_one, leaves, dtype).both(dtype, used, recomputed), expected)


def test_the_norm_of_what_is_dropped() -> None:
    def run(forward: Any) -> list[Array]:
        net = NormedNet(nn.RMSNorm, forward, 2, BFLOAT16, 0.4)
        return net.both(BFLOAT16, (True, True), False)

    same(run(norm_in_one), run(norm_in_turn))


def test_other_uses_of_gelu_and_its_input() -> None:
    """Where GELU(y) and y also go elsewhere gradients meet in another order."""

    def run(fused: bool) -> list[Array]:
        net = Net(in_turn, 1, FLOAT32)
        (position,) = net.share.microbatches(0, 7)
        with Tape(position, fan_in) as tape:
            x = tape.input(random((B, S, C), seed=9))
            if fused:
                activated, y = net.up.gelu(x)
                out = net.down(activated, y, x)
            else:
                y = net.up(x)
                activated = ops.GELU.apply(y)
                out = ops.Add.apply(x, net.down(activated))
            more = ops.Add.apply(activated, y)
        grads = random((B, S, C), seed=10), random((B, S, HIDDEN), seed=11)
        (grad,) = tape.backward([out, more], grads)
        return [out.array, more.array, grad, *(p.grads for p in net.up.parameters())]

    found, expected = run(True), run(False)
    same(found[:2], expected[:2])
    for one, other in zip(found[2:], expected[2:], strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)


def test_a_gradient_that_nobody_wants_is_not_made() -> None:
    net = Net(lambda net, x: net.mlp(x, x), 1, FLOAT32)
    (position,) = net.share.microbatches(0, 7)
    with Tape(position, fan_in) as tape:
        out = net(tape.input(random((B, S, C)), grad=False))
    assert tape.backward(out, random((B, S, C))) == (None,)
