"""Collectives of device arrays among ranks of a node, in kernels that read and write the memory of
their peers (csrc/peer/device_window.hpp).

A kernel waits for the peers' kernels by itself, so that the host only puts it into the stream: the
Work is done at once, and what comes later in the stream finds the result. Where ranks share a
device their kernels take turns and must not wait for each other: then each is cut at its barriers,
and the hosts meet there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from plait import backend
from plait.backend import address, assign, on_device, put, to_host
from plait.comm.after import NOTHING, After, others_of
from plait.comm.channel import Channel, Run
from plait.comm.combine import Bounds, Reduction, adds, counts_and_merges
from plait.comm.communicator import Communicator
from plait.comm.device_memory import DeviceMemory
from plait.comm.products import offer
from plait.comm.ranks import collective
from plait.comm.staged import Staged
from plait.comm.tree import Leaves
from plait.comm.work import Array, Steps


class Peer(Staged):
    """The ranks of `inner`, which does what device memory is not needed for: host arrays, messages,
    types that a kernel cannot add. All of them share memory."""

    updates = fuses = True

    def __init__(self, inner: Communicator, memory: DeviceMemory, keys: Sequence[str], place: Any):
        """keys: of the ranks' processes; place: room for a window in this rank's arena."""
        super().__init__(inner)
        self.memory = memory
        self._channel = Channel(inner, memory, tuple(keys), place)
        self.outside = self._channel.outside
        self.transport = "peer, split" if self._channel.split else "peer"
        self.stream_ordered = not self._channel.split

    @property
    def window(self) -> Any:
        return self._channel.window

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        from plait.comm.for_device import for_device

        found = self.inner.split(color, key)
        return None if found is None else for_device(found, self.memory)

    def abort(self, code: int) -> None:
        try:
            self._channel.abort()
        finally:
            self.inner.abort(code)

    def close(self) -> None:
        self._channel.close()
        super().close()

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """An uninitialised array of the device, where the peers read and write it as long as this
        rank's arena has room."""
        kind = np.dtype(dtype)
        whole = (shape,) if isinstance(shape, int) else tuple(shape)
        if backend.name() == "cpu" or self.memory.arena is None:
            return super().empty(whole, kind)
        block = self.memory.arena.allocate(math.prod(whole) * kind.itemsize)
        if block is None:
            return super().empty(whole, kind)
        return backend.view(block.address, whole, kind, block)

    def views(self, *arrays: Array) -> list[list[Array]] | None:
        if not all(on_device(x) for x in arrays):
            return self.inner.views(*arrays)
        backend.wait()  # once the peers hear of these arrays, they read them
        arena = self.memory.arena
        places = [arena.find(address(x), x.nbytes) if x.flags.c_contiguous else -1 for x in arrays]
        own = [(place, len(x)) for place, x in zip(places, arrays, strict=True)]
        every: Array = self.inner.all_gather(np.array([own], np.int64))
        if every[..., 0].min(initial=0) < 0:
            return None
        found = []
        for x, told in zip(arrays, every.swapaxes(0, 1).tolist(), strict=True):
            found.append(
                [
                    x
                    if rank == self.rank
                    else self.memory.view(
                        self._channel.keys[rank], offset, (length, *x.shape[1:]), x.dtype
                    )
                    for rank, (offset, length) in enumerate(told)
                ]
            )
        return found

    @collective
    def update_gather(
        self, grad: Array, bounds: Sequence[int], adamw: tuple[Any, ...], weight: Array,
        *, blocking: bool = True,
    ) -> Any:  # fmt: skip
        call = self._channel.window.update_gather(grad, list(bounds), adamw, weight)
        steps = self._run("update_gather", call, weight)
        return self._start("update_gather", grad, steps, weight, blocking)

    @collective
    def reduce_update_gather(
        self, grad: Array, bounds: Sequence[int], adamw: tuple[Any, ...], weight: Array,
        *, blocking: bool = True,
    ) -> Any:  # fmt: skip
        counts, merges = counts_and_merges(Leaves.even(self.size, self.size))
        spec = backend.kernels.ReduceSpec(counts, merges, list(bounds), 1, "sum", True)
        call = self._channel.window.reduce_update_gather(grad[None], spec, adamw, weight)
        steps = self._run("reduce_update_gather", call, weight, grad)
        return self._start("reduce_update_gather", grad, steps, weight, blocking)

    def product(self, kind: str, x: Array, w: Array, bounds: Sequence[int], out: Array) -> bool:
        offered = offer(self, kind, x, w, bounds, out)
        if offered is None:
            return False

        def steps() -> Steps:
            for call in offered.calls:
                yield from self._run(kind, call, offered.target)
            if offered.target is not out:
                assign(out, offered.target)

        self._start(kind, x, steps(), out, True, [w])
        return True

    # --- the hooks ----------------------------------------------------------------------------

    def _all_reduce(self, reduction: Reduction, out: Array) -> Steps:
        if not on_device(out):
            return self.inner._all_reduce(reduction, out)
        if not _adds(reduction, out):
            return super()._all_reduce(reduction, out)
        return self._reduce(reduction, out, True)

    def _all_reduce_after(self, reduction: Reduction, after: After, out: Array) -> Steps:
        if not on_device(out):
            return super()._all_reduce_after(reduction, after, out)
        return self._reduce(reduction, out, True, after)

    def _reduce_scatter(self, reduction: Reduction, out: Array) -> Steps:
        if not on_device(out):
            return self.inner._reduce_scatter(reduction, out)
        if not _adds(reduction, out):
            return super()._reduce_scatter(reduction, out)
        return self._reduce(reduction, out, False)

    def _reduce(
        self, reduction: Reduction, out: Array, gather: bool, after: After = NOTHING
    ) -> Steps:
        counts, merges = reduction.plan()
        _, outer, n, inner = reduction.nodes.shape
        if outer * n * inner == 0:
            return ()  # on all ranks
        columns = [inner * b for b in reduction.bounds]
        spec = backend.kernels.ReduceSpec(counts, merges, columns, outer, reduction.op, gather)
        nodes, bias = reduction.nodes, reduction.bias
        if nodes.dtype.kind == "u":  # whose sums are those of signed ones, bit by bit
            nodes, out = (x.view(f"i{x.itemsize}") for x in (nodes, out))
        residual, norm, to = after
        normed = None if norm is None or to is None else (*norm, *map(_flat, to[1:]))
        call = self._channel.window.reduction(nodes, spec, bias, out, residual, normed)
        name = "all_reduce" if gather else "reduce_scatter"
        return self._run(name, call, out, nodes, *others_of(bias, residual, norm))

    def _all_gather(self, x: Array, lengths: Sequence[int], out: Array) -> Steps:
        if not on_device(out):
            return self.inner._all_gather(x, lengths, out)
        if sum(lengths) == 0:
            return ()
        size = x.dtype.itemsize
        counts = [size * n for n in lengths]
        call = self._channel.window.all_gather(_bytes(x), counts, _bytes(out), str(x.dtype))
        return self._run("all_gather", call, out, x)

    def _all_to_all(self, x: Array, sends: Bounds, out: Array, receives: Bounds) -> Steps:
        if not on_device(out):
            return self.inner._all_to_all(x, sends, out, receives)
        size = x.dtype.itemsize
        send, receive = [size * b for b in sends], [size * b for b in receives]
        call = self._channel.window.all_to_all(_bytes(x), send, _bytes(out), receive, str(x.dtype))
        return self._run("all_to_all", call, out, x)

    def _broadcast(self, x: Array, root: int) -> Steps:
        if not on_device(x):
            return self.inner._broadcast(x, root)
        if x.size == 0:
            return ()
        call = self._channel.window.broadcast(_bytes(x), root, str(x.dtype))
        return self._run("broadcast", call, x, x)

    def _barrier(self) -> Steps:
        """All that the devices of these ranks were told is done, too."""
        yield self._channel.done
        yield from self.inner._barrier()

    def _send(self, x: Array, dest: int, tag: int) -> Steps:
        """The receiver reads it where it lies, or in a cell of this rank's arena."""
        if not on_device(x):
            yield from self.inner._send(x, dest, tag)
            return
        arena, host = self.memory.arena, self._channel.meeting
        offset, cell = arena.find(address(x), x.nbytes), None
        if offset < 0:
            cell = arena.allocate(x.nbytes)
        if cell is not None:
            offset = cell.offset
            assign(backend.view(cell.address, x.shape, x.dtype, cell), x)
        written, turns = backend.mark(), self._channel.sends[dest, tag]
        turn = turns.take()
        yield lambda: turns.now == turn and written()
        try:
            where = host.send(np.array([offset, x.nbytes]), dest, 2 * tag, blocking=False)
            read = host.recv(np.empty(1, np.int64), dest, 2 * tag + 1, blocking=False)
            yield where.done
            if offset < 0:
                yield from self.inner._send(to_host(x), dest, tag)
        finally:
            turns.now += 1
        yield read.done

    def _recv(self, out: Array, source: int, tag: int) -> Steps:
        if not on_device(out):
            yield from self.inner._recv(out, source, tag)
            return
        turns = self._channel.receives[source, tag]  # answers come in the order of the messages
        turn = turns.take()
        yield lambda: turns.now == turn
        try:
            yield from self._fetch(out, source, tag)
        finally:
            turns.now += 1

    def _fetch(self, out: Array, source: int, tag: int) -> Steps:
        host, where = self._channel.meeting, np.empty(2, np.int64)
        yield host.recv(where, source, 2 * tag, blocking=False).done
        offset, size = where.tolist()
        fits = size == out.nbytes
        if offset < 0:
            held = self.inner.empty(size, np.uint8)
            yield from self.inner._recv(held, source, tag)
            if fits:
                put(out, held.view(out.dtype).reshape(out.shape))
        elif fits:
            key = self._channel.keys[source]
            assign(out, self.memory.view(key, offset, out.shape, out.dtype))
            yield backend.mark()
        yield host.send(np.zeros(1, np.int64), source, 2 * tag + 1, blocking=False).done
        if not fits:
            raise ValueError(
                f"recv: rank {source} sends {size} bytes, out {out.shape} {out.dtype} has "
                f"{out.nbytes}"
            )

    def _refused(self, x: Array | None) -> Steps:
        if x is None or not on_device(x):
            return self.inner._refused(x)
        run = Run(self._channel, "a call it refuses", self._channel.window.refused(), [0, 0], ())
        return run.in_stages() if self._channel.split else run

    def _run(self, name: str, call: Any, out: Array, *reads: Array) -> Steps:
        arena, outside = self.memory.arena, [0, 0]
        stored = name in ("all_reduce", "update_gather", "reduce_update_gather")
        read = [*reads[:1], *((out,) if stored else ())]  # and written, by peers
        for x in {address(each): each for each in read}.values():
            if call.copied and arena.find(address(x), x.nbytes) < 0:
                outside = [outside[0] + 1, outside[1] + x.nbytes]
        run = Run(self._channel, name, call, outside, reads)
        return run.in_stages() if self._channel.split else run


def _adds(reduction: Reduction, out: Array) -> bool:
    """Whether a kernel can do these additions."""
    dtype = reduction.nodes.dtype
    if dtype.kind not in "iu":
        return adds(reduction, out)
    return dtype.itemsize >= 4 and (dtype.kind == "i" or reduction.op == "sum")


def _flat(x: Array | None) -> Array | None:
    return None if x is None else x.reshape(-1)


def _bytes(x: Array) -> Array:
    return x.view(np.uint8)
