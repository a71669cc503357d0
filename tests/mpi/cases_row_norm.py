"""A row-parallel layer with its residual and the norm behind it as one op, on every transport: the
bits of one op after the other on one rank, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from cases_after import no_other_kernels
from devices import SHARED, gpus, peers
from harness import case
from reference import BFLOAT16, RANKS, Array, assert_same
from transports import transports

from plait import backend, nn, ops
from plait.autograd import Tape, Tensor
from plait.comm import Communicator, Leaves
from plait.comm.alone import Alone
from plait.ops.position import Share

FLOAT32 = np.dtype(np.float32)
B, S, K, C, LEAVES = 3, 7, 30, 20, 6
Found = dict[str, tuple[Any, Array]]
Form = Callable[[Any, Any, Tensor, Tensor], Any]


def in_one(row: Any, norm: Any, x: Tensor, residual: Tensor) -> Any:
    return row.normed(x, residual, norm)


def in_turn(row: Any, norm: Any, x: Tensor, residual: Tensor) -> Any:
    stream = ops.Add.apply(residual, row(x))
    return stream, norm(stream)


def random(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def run(comm: Communicator, form: Form, kind: Any, dtype: Any, sequence: bool = False) -> Found:
    """What this rank has of everything, and where that lies in the whole: outputs, gradients of
    inputs and of parameters."""
    comm = comm.with_leaves(Leaves.even(LEAVES, comm.size))
    leaves = slice(*comm.leaves.bounds[comm.rank : comm.rank + 2])
    build = nn.Build(comm)
    row, norm = nn.RowLinear(build, K, C), kind(build.at("norm"), C)
    columns = np.concatenate([np.arange(*cut) for cut in row.weight.rows])
    parameters = (*row.parameters(), *norm.parameters())
    for seed, p in enumerate(parameters):
        whole = random(p.shape, dtype, seed)
        p.array = backend.to_device(whole if p.replicated else whole[columns])
        chains = (leaves.stop - leaves.start,) if p.replicated else ()
        p.grads = backend.zeros((1, *chains, *p.local_shape))
    (position,) = Share(B, Leaves.even(1, 1), 0, B).microbatches(0, 0)
    own: Any = slice(None), slice(None)
    if sequence:
        position = replace(position, sequence=S)
        own = slice(None), slice(*(leaf * S // LEAVES for leaf in (leaves.start, leaves.stop)))
    streams = [np.ascontiguousarray(random((B, S, C), dtype, seed)[own]) for seed in (11, 12, 13)]
    x, residual, *grads = map(
        backend.to_device,
        (np.ascontiguousarray(random((B, S, K), dtype, 10)[..., columns]), *streams),
    )
    with Tape(position, ops.fan_in) as tape:
        inputs = tape.input(x), tape.input(residual)
        fused = comm.fuses and form is in_one and not sequence
        with no_other_kernels() if fused else nullcontext():
            outputs = form(row, norm, *inputs)
    grad_x, grad_residual = tape.backward(outputs, grads)
    found: dict[str, tuple[Any, Any]] = {
        "stream": (own, outputs[0].array),
        "norm": (own, outputs[1].array),
        "gradient of x": ((..., columns), grad_x),
        "gradient of the residual": (own, grad_residual),
    }
    for p in parameters:
        where = (slice(None), leaves if p.replicated else columns)
        found[f"gradient of {p.name}"] = where, p.grads
    return {name: (where, backend.to_host(x)) for name, (where, x) in found.items()}


def compare(found: Found, whole: Found, at: str) -> None:
    assert found.keys() == whole.keys()
    for name, (where, array) in found.items():
        _, want = whole[name]
        assert np.isfinite(want.astype(FLOAT32)).all()
        assert want.any()
        assert_same(array, np.ascontiguousarray(want[where]), f"{at}: {name}")


def settings() -> list[tuple[Any, Any]]:
    return [(nn.LayerNorm, BFLOAT16), (nn.RMSNorm, FLOAT32), (nn.RMSNorm, BFLOAT16)]


@case(RANKS)
def on_every_transport(world: Communicator) -> None:
    for kind, dtype in settings():
        want = run(Alone(), in_turn, kind, dtype)
        for comm, form, sequence in product(transports(), (in_one, in_turn), (False, True)):
            at = f"{comm.transport} {kind.__name__} {dtype} {form.__name__} {sequence}"
            compare(run(comm, form, kind, dtype, sequence), want, at)


@case((2, 4), cuda=True)
def on_peer_memory(world: Communicator) -> None:
    for shared in SHARED:
        with gpus(world, shared):
            want = run(Alone(), in_turn, nn.LayerNorm, BFLOAT16)
            comm = peers(world)
            for sequence in (False, True):
                at = f"{comm.transport} {sequence}"
                compare(run(comm, in_one, nn.LayerNorm, BFLOAT16, sequence), want, at)
            comm.close()
