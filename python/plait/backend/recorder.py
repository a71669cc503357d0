"""What a device is given to do, recorded as a CUDA graph and done again: the host's part of a step
is then one call."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from plait.backend.host import Array

WARM = 2  # times that work runs before it is recorded: its kernels are loaded, its memory is there


class Recorder:
    """Runs work on copies of arrays in fixed places, the same work again and again.

    Arrays that work makes come from a pool of its own, which keeps them: the graph knows their
    addresses; so does `others`, which has more memory. What only the host does is done once, while
    work is recorded, and must not be part of it: `recording` tells who would.
    """

    recording = False  # in this process

    def __init__(self, cupy: Any, others: Iterable[Any] = ()):
        self._cupy, self.pool, self._others = cupy, cupy.cuda.MemoryPool(), others
        self._key: Hashable = None
        self._times = 0
        self._places: list[tuple[Any, Any]] = []  # pinned on the host, and on the device
        self._graph: Any = None
        self._result: Any = None
        self.recorded = False  # what last ran was the graph
        self._refused = False

    def run(
        self, key: Hashable, arrays: Sequence[Array], work: Callable[..., Any],
        repeatable: Callable[[], bool],
    ) -> Any:  # fmt: skip
        """What work(*arrays) returned when it ran or was recorded; arrays are numpy's, work gets
        the device's. It is recorded once it ran twice with this key, if repeatable() then says that
        another time would be the same but for the arrays."""
        key = key, *((x.shape, x.dtype) for x in arrays)
        if key != self._key:
            self._key, self._times, self._graph, self._result = key, 0, None, None
            self._places = [self._place(x) for x in arrays]
        for (pinned, there), x in zip(self._places, arrays, strict=True):
            pinned[...] = x
            there.set(pinned)
        self._times += 1
        self.recorded = self._graph is not None
        if self.recorded:
            self._graph.launch()
            return self._result
        with self._cupy.cuda.using_allocator(self.pool.malloc):
            if self._times <= WARM or self._refused or not repeatable():
                return work(*(there for _, there in self._places))
            return self._record(work)

    def _record(self, work: Callable[..., Any]) -> Any:
        try:
            self._result, self._graph = self._captured(work)
        except Exception as error:
            self._refused = True
            text = f"the step is no CUDA graph, but runs op by op: {error}"
            warnings.warn(text, stacklevel=2)
        if self._graph is None:  # the error is gone, and with it the arrays of what it broke off
            return work(*(there for _, there in self._places))
        self._graph.launch()
        self.recorded = True
        return self._result

    def _captured(self, work: Callable[..., Any]) -> tuple[Any, Any]:
        """What work returns, and its graph. If there is none, nothing is kept for it."""
        cuda = self._cupy.cuda
        stream = cuda.get_current_stream()
        self._keep(True)
        try:
            stream.begin_capture(cuda.runtime.streamCaptureModeRelaxed)
            result = work(*(there for _, there in self._places))
            graph = stream.end_capture()
        except BaseException:
            with contextlib.suppress(Exception):  # it may be broken off already
                stream.end_capture()
            self._keep(False)
            for each in tuple(self._others):
                each.forget()
            raise
        self._keep(False)
        return result, graph

    def _keep(self, on: bool) -> None:
        Recorder.recording = on
        for each in tuple(self._others):
            each.keep(on)

    def _place(self, x: Array) -> tuple[Any, Any]:
        memory = self._cupy.cuda.alloc_pinned_memory(max(x.nbytes, 1))
        pinned = np.frombuffer(memory, np.uint8, x.nbytes).view(x.dtype).reshape(x.shape)
        return pinned, self._cupy.empty(x.shape, x.dtype)
