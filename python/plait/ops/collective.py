"""Matrix products fused with collectives, for any MPI program on numpy arrays.

Sums are float32, in the tree over comm's leaves (one a rank, or comm.with_leaves(...), which cut K
evenly), and are rounded once: the same bits on every transport, and as plait's own layers have
them. On one node, arrays of comm.empty are read and written where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from plait.backend import (
    Array,
    assign,
    beside,
    bfloat16,
    contiguous,
    float32,
    kernels_of,
    share_memory,
    writeable,
)
from plait.comm import Communicator
from plait.comm.agree import agree
from plait.comm.border import bordered
from plait.comm.combine import even_bounds

_FEW = 128  # rows of a piece that do not repay packing w once more
_TAG = 1 << 14  # beyond those of the caller's own messages


@bordered
def matmul_all_reduce(x: Array, w: Array, comm: Communicator, out: Array | None = None) -> Array:
    """x @ w summed over the ranks of comm, on every rank; all of them call it.

    x: (M, K) this rank's columns of a matrix, w: (K, N) this rank's rows of the other, both float32
    or both bfloat16; K may differ between ranks. out: (M, N), of x's type or float32, the same on
    all ranks; it is returned. A float32 out from comm.empty spares a copy.

    ValueError if shapes or types do not fit, on every rank.
    """
    shape = (x.shape[:1] + w.shape[1:2]) if x.ndim == w.ndim == 2 else ()
    same = {"(M, N)": shape, "result": x.dtype if out is None else out.dtype}
    _check("matmul_all_reduce", comm, x, w, out, shape, same)
    out = beside(x, shape, x.dtype) if out is None else out
    if comm.product("matmul_all_reduce", x, w, even_bounds(shape[0], comm.size), out):
        return out
    nodes = 1 if comm.size == 1 else len(comm.leaves.nodes(comm.rank))
    exact = comm.size == 1 or (nodes == 1 and out.dtype == float32)
    if exact and _usable(out, x, w):
        stack = out[None]
    else:
        stack = comm.empty((nodes, *shape), out.dtype if comm.size == 1 else float32)
    _products(x, w, comm, stack)
    if comm.size > 1:
        comm.all_reduce_nodes(stack, dtype=out.dtype, out=out)
    elif stack.base is not out:
        assign(out, stack[0])
    return out


@bordered
def matmul_reduce_scatter(
    x: Array, w: Array, comm: Communicator, *, axis: int = 0, out: Array | None = None
) -> Array:
    """x @ w summed over the ranks of comm, and cut along `axis` (0 or 1) of the product: rank r
    gets [r * n // size, (r + 1) * n // size). Else as matmul_all_reduce."""
    shape = (x.shape[:1] + w.shape[1:2]) if x.ndim == w.ndim == 2 else ()
    own = shape
    if shape and axis in (0, 1):
        bounds = even_bounds(shape[axis], comm.size)
        length = bounds[comm.rank + 1] - bounds[comm.rank]
        own = (length, shape[1]) if axis == 0 else (shape[0], length)
    same = {"(M, N)": shape, "axis": axis, "result": x.dtype if out is None else out.dtype}
    _check(
        "matmul_reduce_scatter",
        comm,
        x,
        w,
        out,
        own,
        same,
        "" if axis in (0, 1) else "axis must be 0 or 1",
    )
    out = beside(x, own, x.dtype) if out is None else out
    if axis == 0 and comm.product("matmul_reduce_scatter", x, w, bounds, out):
        return out
    nodes = 1 if comm.size == 1 else len(comm.leaves.nodes(comm.rank))
    stack = comm.empty((nodes, *shape), out.dtype if comm.size == 1 else float32)
    _products(x, w, comm, stack)
    if comm.size > 1:
        comm.reduce_scatter_nodes(stack, axis=axis, dtype=out.dtype, out=out)
    else:
        assign(out, stack[0])
    return out


@bordered
def all_gather_matmul(x: Array, w: Array, comm: Communicator, out: Array | None = None) -> Array:
    """The x of all ranks, one below the other, @ w.

    x: (m, K), of as many rows as this rank likes; w: (K, N), this rank's own, N too. out: (M, N)
    with M the sum of all m, of x's type or float32; it is returned. This rank's rows are multiplied
    while the others' arrive; an x from comm.empty is read by the ranks of its node where it lies.

    ValueError if shapes or types do not fit, on every rank.
    """
    name = "all_gather_matmul"
    _check(name, comm, x, w, None, (), {"K": x.shape[-1:]})
    rows = [0, *np.cumsum(comm.all_gather(np.array([len(x)], np.int64))).tolist()]
    shape, k = (rows[-1], w.shape[1]), x.shape[1]
    _check(name, comm, x, w, out, shape, {})
    out = beside(x, shape, x.dtype) if out is None else out
    if comm.product(name, x, w, rows, out):
        return out
    target = out if _usable(out, x, w) else beside(x, shape, out.dtype)
    w = _rows(w)
    for low, high, piece in _pieces(_rows(x), rows, comm):
        kernels_of(x).matmul(piece, w, False, False, [0, k], False, 0, None, target[low:high])
    if target is not out:
        assign(out, target)
    return out


def _products(x: Array, w: Array, comm: Communicator, stack: Array) -> None:
    """stack (nodes, M, N) = x @ w, a product for each of this rank's nodes of the tree."""
    nodes, run, k = comm.leaves.nodes(comm.rank), comm.leaves.run(comm.rank), x.shape[1]
    x, w = _rows(x), _rows(w)
    for part, (low, high) in zip(stack, nodes, strict=True):
        cut = [(leaf - run.start) * k // len(run) for leaf in range(low, high + 1)]
        columns = slice(cut[0], cut[-1])
        leaves = [bound - cut[0] for bound in cut]
        kernels_of(x).matmul(x[:, columns], w[columns], False, False, leaves, False, 0, None, part)


def _pieces(x: Array, rows: list[int], comm: Communicator) -> Iterator[tuple[int, int, Array]]:
    """(first row, end, rows) of every rank, this one's first; or of all, where pieces are small."""
    order = [(comm.rank + distance) % comm.size for distance in range(comm.size)]
    if comm.size > 1 and (rows[-1] < _FEW * comm.size or x.shape[1] == 0):
        yield 0, rows[-1], comm.all_gather(x, bounds=rows)
        return
    views = comm.views(x)
    if views is not None:
        for rank in order:
            yield rows[rank], rows[rank + 1], views[0][rank]
        comm.barrier()  # nobody reads this rank's x any more
        return
    arriving = []
    for distance, rank in enumerate(order[1:], 1):
        piece = beside(x, (rows[rank + 1] - rows[rank], x.shape[1]), x.dtype)
        arriving.append((rank, comm.recv(piece, rank, _TAG + distance, blocking=False)))
    sent = [
        comm.send(x, (comm.rank - distance) % comm.size, _TAG + distance, blocking=False)
        for distance in range(1, comm.size)
    ]
    yield rows[comm.rank], rows[comm.rank + 1], x
    for rank, work in arriving:
        yield rows[rank], rows[rank + 1], work.wait()
    for work in sent:
        work.wait()


def _check(
    name: str, comm: Communicator, x: Array, w: Array, out: Array | None, shape: tuple[int, ...],
    same: dict[str, Any], problem: str = "",
) -> None:  # fmt: skip
    """On every rank: whether x and w fit, out has this shape, and ranks have the same."""
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0]:
        problem = f"x {x.shape} and w {w.shape} do not match: needed are (M, K) and (K, N)"
    elif x.dtype != w.dtype or x.dtype not in (float32, bfloat16):
        problem = (
            f"x is {x.dtype} and w is {w.dtype}: both must be float32 or both bfloat16, "
            "as x.astype(np.float32) is"
        )
    elif not problem and out is not None:
        kinds = "float32" if x.dtype == float32 else "bfloat16 or float32"
        if out.shape != shape or out.dtype not in (x.dtype, float32) or not writeable(out):
            problem = (
                f"x {x.shape} @ w {w.shape} needs a writable out {shape} {kinds}, got "
                f"{out.shape} {out.dtype}{'' if writeable(out) else ', read-only'}"
            )
    agree(name, comm, problem, {"type": x.dtype, **same})


def _usable(out: Array, *others: Array) -> bool:
    """Whether a kernel can write there while it reads the others."""
    return out.flags.c_contiguous and not any(share_memory(out, y) for y in others)


def _rows(x: Array) -> Array:
    """x itself where its rows are contiguous, as the kernels need it."""
    return x if x.strides[1] == x.dtype.itemsize and x.strides[0] >= 0 else contiguous(x)
