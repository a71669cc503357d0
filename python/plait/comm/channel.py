"""The window over device memory that the ranks of a node have together, and who is behind it."""

from __future__ import annotations

import time
import weakref
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from plait import backend
from plait.backend.recorder import Recorder
from plait.comm.communicator import Communicator
from plait.comm.device_memory import DeviceMemory
from plait.comm.transport import PeerFailed
from plait.comm.work import Array, Poll, Quick, Steps, Turns

STAGING = 8 << 20  # bytes of one staging buffer of a communicator; each rank has two
MOST_RANKS = 16  # of a window
TUNING: dict[str, int] = {}  # of windows, in place of their own
DEADLINE = 600.0  # seconds that a kernel waits for a peer: it may be writing a checkpoint
_SUSPICIOUS = 1.0  # seconds of waiting between looks at whether the peers still live


class Channel:
    """keys: of the ranks' processes; place: room for a window in this rank's arena.

    checked: every collective is waited for, so that its own call tells what is wrong with it.
    in_graph: some are in a recorded graph.
    """

    checked = in_graph = False

    def __init__(
        self, inner: Communicator, memory: DeviceMemory, keys: tuple[str, ...], place: Any
    ):
        self.keys, self._memory, self._inner, self._place = keys, memory, inner, place
        self.split = memory.crowded(keys)
        self.turns = Turns()  # of collectives in stages
        meeting = inner.split(0, inner.rank)
        assert meeting is not None
        self.meeting = meeting  # of the hosts, about what the devices do
        self.sends: defaultdict[tuple[int, int], Turns] = defaultdict(Turns)  # by rank and tag
        self.receives: defaultdict[tuple[int, int], Turns] = defaultdict(Turns)
        # Peers may still read the block of a window that is dropped: it is nobody's from then on.
        self._dropped = weakref.finalize(self, memory.left.append, place)
        self.outside = [0, 0]
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
        if not self.open:
            raise ValueError(f"{name}: this communicator is closed")
        self._check()
        self._doing, self.in_graph = name, self.in_graph or Recorder.recording
        self.window.launch(call, stage)

    def done(self) -> bool:
        """Whether the device has done all that it was told."""
        done = backend.done()
        self.look()  # after it: what went wrong in what is done is told
        return done

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
        try:
            backend.wait()
            self.window.close()
        finally:  # whatever another communicator has to say, the peers wait here
            self._inner.barrier()  # from here on no peer uses the block
            self._dropped.detach()
            self.window = self._place = None
            self.meeting.close()

    def _check(self) -> None:
        try:
            self.window.check()
        except (RuntimeError, ValueError) as error:
            raise PeerFailed(f"{self._who}: {error}") from None

    def _look_after(self, now: float) -> None:
        """A peer that has ended may have had nothing left to do: it is missed only if a collective
        goes on, or what may be one."""
        for rank, key in enumerate(self.keys):
            if rank == self._inner.rank or not self._memory.gone(key):
                continue
            suspected = now - self._suspected.setdefault(rank, now) >= _SUSPICIOUS
            if suspected and (self.in_graph or not self.window.idle) and not backend.done():
                self.window.abort()
                raise PeerFailed(
                    f"{self._who}: rank {rank} has ended ({self._memory.process(key).text})"
                )

    @property
    def _who(self) -> str:
        own = self._memory.process(self.keys[self._inner.rank])
        return f"rank {self._inner.rank} of {self._inner.size} ({own.text}), last in {self._doing}"


class Run(Quick):
    """One call of a window. outside: how many arrays it has to copy, and their bytes."""

    __slots__ = ("_call", "_channel", "_name", "_outside", "quick", "reads")

    def __init__(
        self, channel: Channel, name: str, call: Any, outside: list[int], reads: tuple[Array, ...]
    ):
        self._channel, self._name, self._call, self._outside = channel, name, call, outside
        self.quick = self._start
        self.reads = reads

    def _start(self) -> bool:
        self._counted()
        channel = self._channel
        channel.launch(self._name, self._call, 0)
        if channel.checked:
            backend.wait()
        return True

    def _counted(self) -> None:
        for i in (0, 1):
            self._channel.outside[i] += self._outside[i]

    def __iter__(self) -> Iterator[Poll]:
        self._start()
        yield from ()

    def rest(self) -> Steps:
        return ()

    def in_stages(self) -> Iterator[Poll]:
        """The hosts meet after every stage: also after the last, for peers read this rank's cells
        until then."""
        self._counted()
        channel = self._channel
        meeting = channel.meeting
        turn = channel.turns.take()
        yield lambda: channel.turns.now == turn
        try:
            stage, stages = 0, self._call.stages
            while stage < stages:
                channel.launch(self._name, self._call, stage)
                yield channel.done
                yield from meeting._barrier()
                stage += 1
                if stage == 2 and self._name == "all_to_all":
                    # All are known to be in it, as the kernels have compared their letters; no rank
                    # knows how much others move.
                    most = np.array([stages])
                    yield meeting.all_reduce(most, "max", out=most, blocking=False).done
                    stages = int(most[0])
        finally:
            channel.turns.now += 1
