"""Products of matrices of which every rank has some rows, or a part of every sum, multiplied and
communicated by one kernel (csrc/peer/device_product.hpp)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from plait import backend
from plait.backend import address, on_device, share_memory
from plait.comm.combine import counts_and_merges
from plait.comm.work import Array

if TYPE_CHECKING:
    from plait.comm.peer import Peer

# Elements of a sum, or of the rows that are gathered, that are worth it: a tile for each
# multiprocessor of a GPU. Not measured.
LEAST = 1 << 21
_ASIDE = 4  # sums that the kernel can set aside


class Offer(NamedTuple):
    calls: list[Any]  # of a window, one after the other
    target: Array  # which has the result then
    place: Any  # what peers write to meanwhile


def offer(
    comm: Peer, kind: str, x: Array, w: Array, bounds: Sequence[int], out: Array
) -> Offer | None:
    """What multiplies; None, on all ranks, where one of them has other arrays than the kernel
    takes, or no room."""
    arena, rank = comm.memory.arena, comm.rank
    sums, everywhere = kind != "all_gather_matmul", kind == "matmul_all_reduce"
    cuts = len(comm.leaves.run(rank)) if sums else 1
    k, n = w.shape
    leaves = [cut * k // cuts for cut in range(cuts + 1)]
    counts, merges = counts_and_merges(comm.leaves)

    place = target = None
    if bounds[-1] * (n if sums else k) < LEAST:  # of rows each rank may make other columns
        return None
    if sums and (max(counts) > 1 or _aside(merges) > _ASIDE):
        return None
    if _takes(x, w, out, leaves, bounds, sums):
        rows = bounds[rank + 1] - bounds[rank]
        place = arena.allocate(4 * comm.size * rows * n if sums else 2 * bounds[-1] * k)
        target = _inside(arena, out) if everywhere else out
    mine = [0, 0, 0, 0]
    if place is not None and target is not None:
        found = arena.find(address(target), target.nbytes)
        mine = [1, place.offset, found, int(backend.kernels.wgmma_available())]
    told = comm.inner.all_gather(np.array([mine], np.int64))
    if target is None or not told[:, 0].all():
        return None
    places, outs, wgmma = told[:, 1].tolist(), told[:, 2].tolist(), bool(told[:, 3].all())
    spec = backend.kernels.ProductSpec(list(bounds), leaves, merges, places, outs, wgmma)
    window = comm.window
    calls = (
        window.matmul_reduce(x, w, spec, everywhere, target)
        if sums
        else window.all_gather_matmul(x, w, spec, target)
    )
    return Offer(calls, target, place)


def _takes(
    x: Array, w: Array, out: Array, leaves: list[int], bounds: Sequence[int], sums: bool
) -> bool:
    """Whether the kernel does, on this rank."""
    return (
        all(map(on_device, (x, w, out)))
        and bool(backend.kernels.product_fits(x, w, leaves, list(bounds), sums))
        and bool(out.flags.c_contiguous)
        and out.size > 0
        and address(out) % 16 == 0
        and not share_memory(out, x)
        and not share_memory(out, w)
    )


def _aside(merges: list[int]) -> int:
    """The most sums that wait for their sibling while the tree is added up."""
    waiting = most = 0
    for count in merges:
        most = max(most, waiting)
        waiting += 1 - count
    return most


def _inside(arena: Any, out: Array) -> Array | None:
    """out, or an array like it, where peers can write to it."""
    if arena.find(address(out), out.nbytes) >= 0:
        return out
    block = arena.allocate(out.nbytes)
    return None if block is None else backend.view(block.address, out.shape, out.dtype, block)
