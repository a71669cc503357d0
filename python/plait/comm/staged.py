"""Collectives of a device's arrays over a transport of the host: through its memory and back.

The additions of sums are then the CPU's, which are those of the device: the same tree, each rounded
alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from plait import backend
from plait.backend import on_device, put, to_host
from plait.comm.after import After
from plait.comm.combine import Bounds, Reduction
from plait.comm.communicator import Communicator
from plait.comm.work import Array, Steps

if TYPE_CHECKING:
    from plait.comm.device_memory import DeviceMemory


class Staged(Communicator):
    """The ranks of `inner`; host arrays go straight to it, `empty` gives arrays of the device.

    owned: device memory that goes with this communicator.
    """

    owned: DeviceMemory | None = None

    def __init__(self, inner: Communicator):
        super().__init__(inner.rank, inner.size, inner.leaves)
        self.inner, self.nodes = inner, inner.nodes
        self.transport = f"{inner.transport}, staged"
        self.stream_ordered = inner.size == 1

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        found = self.inner.split(color, key)
        return None if found is None else Staged(found)

    def abort(self, code: int) -> None:
        self.inner.abort(code)

    def close(self) -> None:
        if self.owned is not None:
            self.owned.close(self.inner)
        self.inner.close()

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        return backend.empty(shape if isinstance(shape, int) else tuple(shape), dtype)

    def _all_reduce(self, reduction: Reduction, out: Array) -> Steps:
        if self.size == 1 or not on_device(out):
            yield from self.inner._all_reduce(reduction, out)
            return
        held = self.inner.empty(out.shape, out.dtype)
        yield from self.inner._all_reduce(_on_host(reduction), held)
        put(out, held)

    def _all_reduce_after(self, reduction: Reduction, after: After, out: Array) -> Steps:
        if on_device(out):
            return super()._all_reduce_after(reduction, after, out)
        return self.inner._all_reduce_after(reduction, after, out)

    def _reduce_scatter(self, reduction: Reduction, out: Array) -> Steps:
        if self.size == 1 or not on_device(out):
            yield from self.inner._reduce_scatter(reduction, out)
            return
        held = self.inner.empty(out.shape, out.dtype)
        yield from self.inner._reduce_scatter(_on_host(reduction), held)
        put(out, held)

    def _all_gather(self, x: Array, lengths: Sequence[int], out: Array) -> Steps:
        if self.size == 1 or not on_device(out):
            yield from self.inner._all_gather(x, lengths, out)
            return
        held = self.inner.empty(out.shape, out.dtype)
        yield from self.inner._all_gather(to_host(x), lengths, held)
        put(out, held)

    def _all_to_all(self, x: Array, sends: Bounds, out: Array, receives: Bounds) -> Steps:
        if self.size == 1 or not on_device(out):
            yield from self.inner._all_to_all(x, sends, out, receives)
            return
        held = self.inner.empty(out.shape, out.dtype)
        yield from self.inner._all_to_all(to_host(x), sends, held, receives)
        put(out, held)

    def _broadcast(self, x: Array, root: int) -> Steps:
        if self.size == 1 or not on_device(x):
            yield from self.inner._broadcast(x, root)
            return
        held = to_host(x)
        yield from self.inner._broadcast(held, root)
        if root != self.rank:
            put(x, held)

    def _send(self, x: Array, dest: int, tag: int) -> Steps:
        yield from self.inner._send(to_host(x), dest, tag)

    def _recv(self, out: Array, source: int, tag: int) -> Steps:
        if not on_device(out):
            yield from self.inner._recv(out, source, tag)
            return
        held = self.inner.empty(out.shape, out.dtype)
        yield from self.inner._recv(held, source, tag)
        put(out, held)

    def _barrier(self) -> Steps:
        yield from self.inner._barrier()

    def _refused(self, x: Array | None) -> Steps:
        return self.inner._refused(x)


def _on_host(reduction: Reduction) -> Reduction:
    bias = None if reduction.bias is None else to_host(reduction.bias)
    return replace(reduction, nodes=to_host(reduction.nodes), bias=bias)
