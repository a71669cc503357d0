"""Ranks of a node as threads of this process, each with an arena, a window and a stream of its own:
on a GPU, or on fibers, where arrays are numpy's."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import fake_stream
import kernel_backends
import ml_dtypes
import numpy as np

from plait import _cpu
from plait.comm.tree import Leaves

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LINE = 256
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # else streams queue behind each other


class Ranks:
    def __init__(
        self, size: int, *, arena: int = 1 << 20, staging: int = 4096, blocks: int = 2,
        once: int | None = None, work: int | None = 512, split: bool = False, windows: int = 1,
    ):  # fmt: skip
        """blocks: of a rank's grid, 0 for as many as there can be; once, work: None for the
        device's own thresholds."""
        found = kernel_backends.kernels("cuda")
        self.module = getattr(found, "module", found)
        self.xp: Any = getattr(found, "cupy", np)
        self.size = size
        if not blocks:  # on a GPU the ranks share it
            room = self.module.DeviceWindow.resident_blocks()
            blocks = room if self.xp is np else room // size
        self.threads = [ThreadPoolExecutor(1) for _ in range(size)]
        self.streams = [self.stream() for _ in range(size)]
        self.arenas = [self._bytes(arena) for _ in range(size)]
        bases = [_address(x) for x in self.arenas]
        need = -(-self.module.DeviceWindow.block_bytes(size, staging) // LINE) * LINE
        self.used = [windows * need] * size
        self.settle()
        self.sets = [
            [
                self.module.DeviceWindow(
                    rank, size, [base + number * need for base in bases], bases, [arena] * size,
                    staging, blocks, split, once_bytes=once, block_bytes=work,
                )
                for rank in range(size)
            ]
            for number in range(windows)
        ]  # fmt: skip
        self.windows = self.sets[0]
        self.split = split
        for window in itertools.chain(*self.sets):
            window.set_deadline(5.0)  # after a test's mistake, too

    def stream(self) -> Any:
        if self.xp is np:
            return fake_stream.Stream(self.module)
        return self.xp.cuda.Stream(non_blocking=True)

    def _bytes(self, count: int) -> Any:
        raw = self.xp.zeros(count + LINE, np.uint8)
        return raw[-_address(raw) % LINE :][:count]

    def empty(self, rank: int, shape: Sequence[int], dtype: Any, *, inside: bool = True) -> Any:
        """An array of NaNs or of large numbers, in the rank's arena or elsewhere."""
        kind = np.dtype(dtype)
        count = int(np.prod(shape)) * kind.itemsize
        start = self.used[rank]
        if inside:
            self.used[rank] += -(-count // 16) * 16
            assert self.used[rank] <= self.arenas[rank].size, "the test's arena is full"
        raw = self.arenas[rank][start : start + count] if inside else self._bytes(count)
        raw[...] = 0xFF
        return raw.view(kind).reshape(shape)

    def put(self, rank: int, x: np.ndarray, *, inside: bool = True) -> Any:
        there = self.empty(rank, x.shape, x.dtype, inside=inside)
        there[...] = self.xp.asarray(x)
        return there

    def offset(self, rank: int, x: Any) -> int:
        """Where an array lies in the rank's arena."""
        return _address(x.view(np.uint8)) - _address(self.arenas[rank])

    def get(self, x: Any) -> np.ndarray:
        return x if self.xp is np else x.get()

    def run(
        self, work: Callable[[int], Any], ranks: Sequence[int] | None = None, limit: float = 60.0
    ) -> list[Any]:
        """work(rank) of all ranks at once, within `limit` seconds; what each returns or raises."""

        def one(rank: int) -> Any:
            try:
                with self.on(rank, self.streams[rank]):
                    return work(rank)
            except Exception as error:
                return error
            finally:
                self.streams[rank].synchronize()

        self.settle()
        chosen = range(self.size) if ranks is None else ranks
        started = [self.threads[rank].submit(one, rank) for rank in chosen]
        return [each.result(limit) for each in started]

    def settle(self) -> None:
        """What the test has put there is there."""
        if self.xp is not np:
            self.xp.cuda.get_current_stream().synchronize()

    @contextmanager
    def on(self, rank: int, stream: Any) -> Iterator[None]:
        """What this rank's thread is told inside goes to another stream than its own."""
        self.module.set_stream(stream.ptr)
        try:
            with stream:
                yield
        finally:
            self.module.set_stream(self.streams[rank].ptr)

    def capture(self, rank: int, work: Callable[[], Any]) -> Any:
        """work() as a graph of this rank's stream, told to it by launch(); for use inside run()."""
        stream = self.streams[rank]
        stream.begin_capture()
        try:
            work()
        finally:
            graph = stream.end_capture()
        return graph

    def collect(self, calls: Sequence[Any], number: int = 0) -> None:
        """Launches a call on every rank, and raises what goes wrong."""
        windows = self.sets[number]

        def launch(rank: int, stage: int = 0) -> None:
            if calls[rank] is not None:
                windows[rank].launch(calls[rank], stage)

        stages = max(call.stages for call in calls if call is not None) if self.split else 1
        for stage in range(stages):
            for found in self.run(lambda rank, stage=stage: launch(rank, stage)):
                if found is not None:
                    raise found
            for window in windows:
                window.check()

    def close(self) -> None:
        for windows in self.sets:
            for window in windows:
                window.close()
        for thread in self.threads:
            thread.shutdown()


def _address(x: Any) -> int:
    found = x.data.ptr if hasattr(x.data, "ptr") else x.__array_interface__["data"][0]
    return int(found)


def tree_of(nodes: list[np.ndarray], merges: list[int], bias: Any, dtype: Any) -> np.ndarray:
    """The CPU's sum of float nodes."""
    out = np.empty(nodes[0].shape, dtype)
    parts = [np.ascontiguousarray(x.astype(np.float32)) for x in nodes]
    if bias is None or bias.size == out.shape[-1]:
        _cpu.tree_sum(parts, merges, bias, out)
    else:
        rows = (-1, bias.size)
        _cpu.tree_sum([x.reshape(rows) for x in parts], merges, bias, out.reshape(rows))
    return out


def leaves_of(size: int, count: int | None = None) -> tuple[list[int], list[int]]:
    """How many nodes each rank has, and the merges of all of them."""
    leaves = Leaves.even(count or size, size)
    return [len(leaves.nodes(rank)) for rank in range(size)], leaves.merges()


def even(n: int, size: int, unit: int = 1) -> list[int]:
    return [n // unit * rank // size * unit for rank in range(size)] + [n]
