"""Matrix products over distributed operands, for any MPI program on numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from plait.backend import Array, bfloat16, empty, float32, kernels
from plait.comm import Communicator

_NAME = "matmul_all_reduce"


def matmul_all_reduce(x: Array, w: Array, comm: Communicator, out: Array | None = None) -> Array:
    """x @ w summed over the ranks of comm, on every rank; all of them call it.

    x: (M, K) this rank's columns of a matrix, w: (K, N) this rank's rows of the other, both float32
    or both bfloat16; K may differ between ranks. out: (M, N), of x's type or float32; it is
    returned. A float32 out from comm.empty spares a copy. Sums are float32, in the tree over comm's
    leaves (one a rank, or comm.with_leaves(...), which cut K evenly), and are rounded once.

    ValueError if shapes or types do not fit.
    """
    _check(x, w)
    shape = (x.shape[0], w.shape[1])
    if out is None:
        out = empty(shape, x.dtype)
    elif out.shape != shape or out.dtype not in (x.dtype, float32) or not out.flags.writeable:
        kinds = "float32" if x.dtype == float32 else "bfloat16 or float32"
        raise ValueError(
            f"{_NAME}: x {x.shape} @ w {w.shape} needs a writable out {shape} {kinds}, got "
            f"{out.shape} {out.dtype}{'' if out.flags.writeable else ', read-only'}"
        )
    nodes = comm.leaves.nodes(comm.rank)
    whole = comm.size == 1
    usable = out.flags.c_contiguous and not any(np.may_share_memory(out, y) for y in (x, w))
    if usable and (whole or (len(nodes) == 1 and out.dtype == float32)):
        stack = out[None]
    else:
        stack = comm.empty((1 if whole else len(nodes), *shape), out.dtype if whole else float32)
    run, k = comm.leaves.run(comm.rank), x.shape[1]
    x, w = _rows(x), _rows(w)
    for part, (low, high) in zip(stack, nodes, strict=True):
        cut = [(leaf - run.start) * k // len(run) for leaf in range(low, high + 1)]
        columns = slice(cut[0], cut[-1])
        leaves = [bound - cut[0] for bound in cut]
        kernels.matmul(x[:, columns], w[columns], False, False, leaves, False, 0, None, part)
    if not whole:
        comm.all_reduce_nodes(stack, dtype=out.dtype, out=out)
    elif not usable:
        out[...] = stack[0]
    return out


def _check(x: Any, w: Any) -> None:
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0]:
        raise ValueError(
            f"{_NAME}: x {x.shape} and w {w.shape} do not match: needed are (M, K) and (K, N)"
        )
    if x.dtype != w.dtype or x.dtype not in (float32, bfloat16):
        raise ValueError(
            f"{_NAME}: x is {x.dtype} and w is {w.dtype}: both must be float32 or both bfloat16, "
            "as x.astype(np.float32) is"
        )


def _rows(x: Array) -> Array:
    """x itself where its rows are contiguous, as the kernels need it."""
    return x if x.strides[1] == x.dtype.itemsize and x.strides[0] >= 0 else np.ascontiguousarray(x)
