"""What may follow a sum, on every transport: bias, residual, norm; the bits of the ops apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
from devices import SHARED, gpus, peers, there
from harness import case
from reference import (
    BFLOAT16,
    RANKS,
    Array,
    assert_same,
    finish,
    nodes_of,
    of_ranks,
    tree,
    values,
)
from transports import transports

from plait import backend
from plait.backend.host import kernels
from plait.comm import Communicator, Leaves
from plait.comm.after import Norm, Normed
from plait.comm.plan import Plan

FLOAT32 = np.dtype(np.float32)
SHAPES = ((0, 6), (1, 1), (1, 33), (2, 3, 5), (7, 130), (3, 1, 4100))


def follow(total: Array, bias: Any, residual: Any, norm: Norm | None, dtype: Any) -> Any:
    """One op after the other, each storing what it gives."""
    stream = (total if bias is None else total + bias).astype(dtype)
    if residual is not None:
        stream = (residual.astype(FLOAT32) + stream.astype(FLOAT32)).astype(dtype)
    if norm is None:
        return stream
    rows = stream.reshape(-1, stream.shape[-1])
    normed, mean, rstd = np.empty_like(rows), *np.empty((2, len(rows)), FLOAT32)
    if norm.bias is None:
        kernels.rms_norm_forward(rows, None, norm.weight, norm.epsilon, None, normed, rstd)
    else:
        kernels.layer_norm_forward(
            rows, None, norm.weight, norm.bias, norm.epsilon, None, normed, mean, rstd
        )
    shape = stream.shape[:-1]
    means = None if norm.bias is None else mean.reshape(shape)
    return Normed(stream, normed.reshape(stream.shape), means, rstd.reshape(shape))


def assert_alike(found: Any, wanted: Any, what: str) -> None:
    assert type(found) is type(wanted), what
    if not isinstance(wanted, Normed):
        assert_same(found, wanted, what)
        return
    for name, one, other in zip(Normed._fields, found, wanted, strict=True):
        assert (one is None) == (other is None), f"{what}: {name}"
        if other is not None:
            assert_same(one, other, f"{what}: {name}")


def asked(shape: tuple[int, ...], dtype: Any) -> Iterator[tuple[Any, Any, Norm | None]]:
    """(bias, residual, norm), with weights of both types."""
    channels = shape[-1:]
    bias, residual = values(channels, FLOAT32, 91), values(shape, dtype, 92)
    weight, shift = (values(channels, dtype, seed) for seed in (93, 94))
    layer, rms = Norm(weight, shift, 1e-5), Norm(weight.astype(FLOAT32), epsilon=1e-3)
    yield None, residual, None
    yield bias, residual, None
    yield None, None, rms
    yield None, residual, layer
    yield bias, residual, rms


@case(RANKS)
def a_sum_of_nodes(world: Communicator) -> None:
    leaves = Leaves.even(world.size + 3, world.size)
    for shape, dtype in product(SHAPES, (FLOAT32, BFLOAT16)):
        x = of_ranks(shape, FLOAT32, leaves.count)
        nodes = nodes_of(x, leaves.bounds[world.rank], leaves.bounds[world.rank + 1])
        for bias, residual, norm in asked(shape, dtype):
            wanted = follow(tree(x), bias, residual, norm, dtype)
            for base in transports():
                comm, blocking = base.with_leaves(leaves), norm is None
                found = comm.all_reduce_nodes(
                    nodes, bias=bias, residual=residual, norm=norm, dtype=dtype, blocking=blocking
                )
                what = f"{comm.transport} {shape} {dtype} {bias is None} {residual is None} {norm}"
                assert_alike(finish(found), wanted, what)


@case(RANKS)
def a_sum_of_ranks(world: Communicator) -> None:
    """Also into the residual's place and into a part of it, with strides, planned, and again."""
    for dtype, shape in product((FLOAT32, BFLOAT16), ((2, 7), (3, 5, 130))):
        x = of_ranks(shape, dtype, world.size)
        own = x[world.rank]
        for (bias, residual, norm), comm in product(asked(shape, dtype), transports()):
            wanted = follow(tree(x), bias, residual, norm, dtype)
            what = f"{comm.transport} {shape} {dtype} {bias is None} {residual is None} {norm}"
            more: dict[str, Any] = {"bias": bias, "residual": residual, "norm": norm}
            assert_alike(comm.all_reduce(own.copy(), **more), wanted, what)
            planned, held = own.copy(), {**more}
            if residual is not None:
                held["residual"] = residual.copy()
            again = comm.plan("all_reduce", planned, **held)
            assert_alike(again(), wanted, f"{what} planned")
            if residual is None:
                continue
            wide = np.zeros((*shape, 2), dtype)
            wide[..., 0] = residual
            found = comm.all_reduce(own, **{**more, "residual": wide[..., 0]}, out=wide[..., 1])
            assert_alike(found, wanted, f"{what} strided")
            assert_same(wide[..., 1], found.stream if norm else found, what)
            longer = np.append(residual.ravel(), np.zeros(1, dtype))
            part, out = longer[:-1].reshape(shape), longer[1:].reshape(shape)
            found = comm.all_reduce(own, **{**more, "residual": part}, out=out)
            assert_alike(found, wanted, f"{what} overlapping")
            there = held["residual"]
            found = comm.all_reduce(own, **held, out=there)
            assert_alike(found, wanted, f"{what} in the residual's place")
            assert (found.stream if norm else found) is there
            there[...] = residual * 0
            assert_alike(again(), follow(tree(x), bias, there, norm, dtype), f"{what} again")
            assert_same(own, values(shape, dtype, comm.rank + 1), "the input")


REFUSED = (
    ("residual must be (4, 6) float32", {"residual": np.ones((4, 5), FLOAT32)}),
    ("residual must be (4, 6) float32", {"residual": np.ones((4, 6), BFLOAT16)}),
    ("weight and bias as long", {"norm": Norm(np.ones(5, FLOAT32))}),
    ("weight and bias as long", {"norm": Norm(np.ones(6, FLOAT32), np.ones(5, FLOAT32))}),
    ("that both, or float32", {"norm": Norm(np.ones(6, BFLOAT16))}),
    ("that both, or float32", {"norm": Norm(np.ones(6, FLOAT32), np.ones(6, np.float64))}),
    ("bias must be (6) float32", {"bias": np.ones(4, FLOAT32)}),
    ("follow a sum of float32 or bfloat16, not a max", {"op": "max", "bias": np.ones(6, FLOAT32)}),
)


@case((1, 2))
def what_does_not_fit_is_refused(world: Communicator) -> None:
    x, half = np.ones((4, 6), FLOAT32), np.dtype(np.float16)
    calls = [
        *((message, "all_reduce", x, options) for message, options in REFUSED),
        ("not a sum of float16", "all_reduce", x.astype(half), {"residual": x.astype(half)}),
        ("in float32 or bfloat16, not float16", "all_reduce_nodes", x[None],
         {"residual": x.astype(half), "dtype": half}),
        ("last axis of at least 1", "all_reduce", x[:, :0], {"norm": Norm(np.ones(0, FLOAT32))}),
        ("last axis of at least 1", "all_reduce", x[0, 0], {"norm": Norm(np.ones((), FLOAT32))}),
    ]  # fmt: skip
    for comm, (message, name, given, options) in product(transports(), calls):
        try:
            getattr(comm, name)(np.asarray(given), **options)
        except ValueError as error:
            assert message in str(error), (message, str(error))  # noqa: PT017
        else:
            raise AssertionError(f"{comm.transport}: nobody said {message}")
        assert_same(comm.all_reduce(x), x * world.size, "the next")


@case((2, 3, 4), cuda=True)
def in_the_kernel(world: Communicator) -> None:
    """On memory that GPUs share: whatever lies where, planned, into the residual's place; no other
    kernel adds or norms."""
    leaves = Leaves.even(world.size + 3, world.size)
    for shared in SHARED:
        with gpus(world, shared):
            comm = peers(world).with_leaves(leaves)
            for shape, dtype in product(((1, 33), (2, 3, 5), (40, 130)), (FLOAT32, BFLOAT16)):
                x = of_ranks(shape, FLOAT32, leaves.count)
                nodes = nodes_of(x, leaves.bounds[world.rank], leaves.bounds[world.rank + 1])
                for (bias, residual, norm), inside in product(asked(shape, dtype), (True, False)):
                    wanted = follow(tree(x), bias, residual, norm, dtype)
                    what = f"{shared} {shape} {dtype} {bias is None} {residual is None} {norm}"
                    source = there(comm, nodes, inside)
                    more: dict[str, Any] = {"bias": carried(bias), "norm": carried(norm)}
                    if residual is not None:
                        more["residual"] = there(comm, residual, inside)
                    out = comm.empty(shape, dtype) if inside else None
                    with no_other_kernels():
                        found = comm.all_reduce_nodes(source, dtype=dtype, out=out, **more)
                        again = comm.plan("all_reduce_nodes", source, dtype=dtype, out=out, **more)
                        later = again()
                    assert_alike(brought(found), wanted, what)
                    assert_alike(brought(later), wanted, f"{what} planned")
                    tiled = bias is not None and norm is None and shape[0] == 1
                    assert isinstance(again, Plan) == (not shared and not tiled), what
                    if residual is None:
                        continue
                    with no_other_kernels():
                        found = comm.all_reduce_nodes(
                            source, dtype=dtype, out=more["residual"], **more
                        )
                    assert_alike(brought(found), wanted, f"{what} in the residual's place")
                    longer = there(comm, np.append(residual.ravel(), np.zeros(1, dtype)), inside)
                    more["residual"] = longer[:-1].reshape(shape)
                    out = longer[1:].reshape(shape)
                    found = comm.all_reduce_nodes(source, dtype=dtype, out=out, **more)
                    assert_alike(brought(found), wanted, f"{what} overlapping")
            comm.close()


@contextmanager
def no_other_kernels() -> Iterator[None]:
    names = ("add", "layer_norm_forward", "rms_norm_forward")
    kept = {name: getattr(backend.kernels, name) for name in names}
    try:
        for name in names:
            setattr(backend.kernels, name, None)
        yield
    finally:
        for name, kernel in kept.items():
            setattr(backend.kernels, name, kernel)


def carried(x: Any) -> Any:
    if isinstance(x, Norm):
        return Norm(*map(carried, x))
    return backend.to_device(x) if isinstance(x, np.ndarray) else x


def brought(x: Any) -> Any:
    if isinstance(x, Normed):
        return Normed(*(None if each is None else brought(each) for each in x))
    assert backend.on_device(x)
    return backend.to_host(x)
