"""Collectives of device arrays among ranks of a node, in kernels that read and write the memory of
their peers (csrc/peer/device_window.hpp).

A kernel waits for the peers' kernels by itself, so that the host only puts it into the stream: the
Work is done at once, and what comes later in the stream finds the result. Where ranks share a
device their kernels take turns and must not wait for each other: then each is cut at its barriers,
and the hosts meet there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from plait import backend
from plait.backend import address, assign, on_device, put, to_host
from plait.comm.combine import Bounds, Reduction, adds
from plait.comm.communicator import Communicator
from plait.comm.device_memory import DeviceMemory
from plait.comm.staged import Staged
from plait.comm.transport import PeerFailed
from plait.comm.work import Array, Poll, Quick, Steps, Turns

STAGING = 8 << 20  # bytes of one staging buffer of a communicator; each rank has two
MOST_RANKS = 16  # of a window
TUNING: dict[str, int] = {}  # of windows, in place of their own
DEADLINE = 600.0  # seconds that a kernel waits for a peer: it may be writing a checkpoint
_SUSPICIOUS = 1.0  # seconds of waiting between looks at whether the peers still live


class Peer(Staged):
    """The ranks of `inner`, which does what device memory is not needed for: host arrays, messages,
    types that a kernel cannot add. All of them share memory."""

    def __init__(self, inner: Communicator, memory: DeviceMemory, keys: Sequence[str], place: Any):
        """keys: of the ranks' processes; place: room for a window in this rank's arena."""
        super().__init__(inner)
        self.memory = memory
        self._channel = _Channel(inner, memory, tuple(keys), place)
        self.transport = "peer, split" if self._channel.split else "peer"
        self.stream_ordered = not self._channel.split

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        from plait.comm.for_device import for_device

        found = self.inner.split(color, key)
        return None if found is None else for_device(found, self.memory)

    def abort(self, code: int) -> None:
        self._channel.abort()
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

    # --- the hooks ----------------------------------------------------------------------------

    def _all_reduce(self, reduction: Reduction, out: Array) -> Steps:
        if not on_device(out):
            return self.inner._all_reduce(reduction, out)
        if not _adds(reduction, out):
            return super()._all_reduce(reduction, out)
        return self._reduce(reduction, out, True)

    def _reduce_scatter(self, reduction: Reduction, out: Array) -> Steps:
        if not on_device(out):
            return self.inner._reduce_scatter(reduction, out)
        if not _adds(reduction, out):
            return super()._reduce_scatter(reduction, out)
        return self._reduce(reduction, out, False)

    def _reduce(self, reduction: Reduction, out: Array, gather: bool) -> Steps:
        counts, merges = reduction.plan()
        _, outer, n, inner = reduction.nodes.shape
        if outer * n * inner == 0:
            return ()  # on all ranks
        columns = [inner * b for b in reduction.bounds]
        spec = backend.kernels.ReduceSpec(counts, merges, columns, outer, reduction.op, gather)
        nodes, bias = reduction.nodes, reduction.bias
        if (
            nodes.dtype.kind == "u"
        ):  # sums of unsigned integers are those of signed ones, bit by bit
            nodes, out = (x.view(f"i{x.itemsize}") for x in (nodes, out))
        call = self._channel.window.reduction(nodes, spec, bias, out)
        name = "all_reduce" if gather else "reduce_scatter"
        return self._run(name, call, out, nodes, *(() if bias is None else (bias,)))

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
        written, turns = backend.mark(), self._channel.sends[dest]
        turn = turns.take()
        yield lambda: turns.now == turn and written()
        where = host.send(np.array([offset, x.nbytes]), dest, 2 * tag, blocking=False)
        read = host.recv(np.empty(1, np.int64), dest, 2 * tag + 1, blocking=False)
        turns.now += 1
        yield where.done
        if offset < 0:
            yield from self.inner._send(to_host(x), dest, tag)
        yield read.done

    def _recv(self, out: Array, source: int, tag: int) -> Steps:
        if not on_device(out):
            yield from self.inner._recv(out, source, tag)
            return
        host, where = self._channel.meeting, np.empty(2, np.int64)
        yield host.recv(where, source, 2 * tag, blocking=False).done
        offset, size = where.tolist()
        if size != out.nbytes:
            raise ValueError(
                f"recv: rank {source} sends {size} bytes, out {out.shape} {out.dtype} has "
                f"{out.nbytes}"
            )
        if offset < 0:
            held = self.inner.empty(out.shape, out.dtype)
            yield from self.inner._recv(held, source, tag)
            put(out, held)
        else:
            key = self._channel.keys[source]
            assign(out, self.memory.view(key, offset, out.shape, out.dtype))
            yield backend.mark()
        yield host.send(np.zeros(1, np.int64), source, 2 * tag + 1, blocking=False).done

    def _refused(self, x: Array | None) -> Steps:
        if x is None or not on_device(x):
            return self.inner._refused(x)
        run = _Run(self, "a call it refuses", self._channel.window.refused(), [0, 0], ())
        return run.in_stages() if self._channel.split else run

    def _run(self, name: str, call: Any, out: Array, *reads: Array) -> Steps:
        arena, outside = self.memory.arena, [0, 0]
        read = [reads[0], out] if name == "all_reduce" else [reads[0]]  # by peers
        for x in {address(each): each for each in read}.values():
            if call.copied and arena.find(address(x), x.nbytes) < 0:
                outside = [outside[0] + 1, outside[1] + x.nbytes]
        run = _Run(self, name, call, outside, reads)
        return run.in_stages() if self._channel.split else run


class _Run(Quick):
    """One call of a window."""

    __slots__ = ("_call", "_comm", "_name", "_outside", "quick", "reads")

    def __init__(
        self, comm: Peer, name: str, call: Any, outside: list[int], reads: tuple[Array, ...]
    ):
        self._comm, self._name, self._call, self._outside = comm, name, call, outside
        self.quick = self._start
        self.reads = reads

    def _start(self) -> bool:
        self._counted()
        channel = self._comm._channel
        channel.launch(self._name, self._call, 0)
        if channel.checked:
            backend.wait()
        return True

    def _counted(self) -> None:
        for i in (0, 1):
            self._comm.outside[i] += self._outside[i]

    def __iter__(self) -> Iterator[Poll]:
        self._start()
        yield from ()

    def rest(self) -> Steps:
        return ()

    def in_stages(self) -> Iterator[Poll]:
        """The hosts meet after every stage: also after the last, for peers read this rank's cells
        until then."""
        self._counted()
        channel = self._comm._channel
        meeting = channel.meeting
        turn = channel.turns.take()
        yield lambda: channel.turns.now == turn
        try:
            stages = self._call.stages
            if self._name == "all_to_all":  # no rank knows how much others move
                most = np.array([stages])
                yield meeting.all_reduce(most, "max", out=most, blocking=False).done
                stages = int(most[0])
            for stage in range(stages):
                channel.launch(self._name, self._call, stage)
                yield channel.done
                yield from meeting._barrier()
        finally:
            channel.turns.now += 1


class _Channel:
    """The window of these ranks, and who is behind it. keys: of their processes.

    checked: every collective is waited for, so that its own call tells what is wrong with it.
    """

    checked = False

    def __init__(
        self, inner: Communicator, memory: DeviceMemory, keys: tuple[str, ...], place: Any
    ):
        self.keys, self._memory, self._inner, self._place = keys, memory, inner, place
        self.split = memory.crowded(keys)
        self.turns = Turns()  # of collectives in stages
        meeting = inner.split(0, inner.rank)
        assert meeting is not None
        self.meeting = meeting  # of the hosts, about what the devices do
        self.sends = [Turns() for _ in keys]
        self._doing = "nothing yet"
        self._suspected: dict[int, float] = {}  # ranks whose process has ended, since when
        self._next_look = 0.0
        kind, size = backend.kernels.DeviceWindow, inner.size
        mine = np.array([[place.offset, kind.resident_blocks()]], np.int64)
        told = inner.all_gather(mine)
        bases = [memory.base(key) for key in keys]
        blocks = [base + offset for base, offset in zip(bases, told[:, 0].tolist(), strict=True)]
        arenas = [memory.process(key).size for key in keys]
        self.window = kind(
            inner.rank, size, blocks, bases, arenas, STAGING, int(told[:, 1].min()), self.split,
            **TUNING,
        )  # fmt: skip
        self.window.set_deadline(DEADLINE)
        inner.barrier()  # before it a peer has not cleared its block
        self.open = True
        backend.watch(self)

    def launch(self, name: str, call: Any, stage: int) -> None:
        self._check()
        self._doing = name
        self.window.launch(call, stage)

    def done(self) -> bool:
        """Whether the device has done all that it was told."""
        self.look()
        return backend.done()

    def look(self) -> None:
        if not self.open:
            return
        self._check()
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _SUSPICIOUS
            self._look_after(now)

    def abort(self) -> None:
        if self.open:
            self.window.abort()

    def close(self) -> None:
        if not self.open:
            return
        self.open = False  # what it still has to say is of no more use
        backend.wait()
        self.window.close()
        self._inner.barrier()  # from here on no peer uses the block
        self.window = self._place = None
        self.meeting.close()

    def _check(self) -> None:
        try:
            self.window.check()
        except (RuntimeError, ValueError) as error:
            raise PeerFailed(f"{self._who}: {error}") from None

    def _look_after(self, now: float) -> None:
        """A peer that has ended may have had nothing left to do: only if the device goes on
        waiting it is missed."""
        for rank, key in enumerate(self.keys):
            if rank == self._inner.rank or not self._memory.gone(key):
                continue
            if now - self._suspected.setdefault(rank, now) >= _SUSPICIOUS and not backend.done():
                self.window.abort()
                raise PeerFailed(
                    f"{self._who}: rank {rank} has ended ({self._memory.process(key).text})"
                )

    @property
    def _who(self) -> str:
        own = self._memory.process(self.keys[self._inner.rank])
        return f"rank {self._inner.rank} of {self._inner.size} ({own.text}), last in {self._doing}"


def _adds(reduction: Reduction, out: Array) -> bool:
    """Whether a kernel can do these additions."""
    dtype = reduction.nodes.dtype
    if dtype.kind not in "iu":
        return adds(reduction, out)
    return dtype.itemsize >= 4 and (dtype.kind == "i" or reduction.op == "sum")


def _bytes(x: Array) -> Array:
    return x.view(np.uint8)
