"""Collectives of ranks that are streams of one process on one GPU: their kernels run together.

python benchmarks/gpu_collectives.py [--ranks 2] [--rounds 20] [--json F] [--small]

Links are no part of it: peers' memory is this GPU's. So a kernel is held against a copy's
bandwidth, by the bytes that all ranks together read and write, and against the separate kernels,
which take turns with it: an all_reduce, then residual and norm; a reduce_scatter, AdamW, and an
all_gather.
--small: sizes that only show that everything runs, on any device or on none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from turns import ratio_text

from plait import backend
from plait.backend import bfloat16, float32, kernels
from plait.comm.tree import Leaves

LINE = 256
STAGING = 8 << 20
WIDTH = 4096  # of a row that is normed


class Ranks:
    """Each with a thread, a stream, an arena and a window."""

    def __init__(self, size: int, room: int, xp: Any, staging: int, blocks: int):
        self.size, self.xp, self.fast = size, xp, hasattr(xp, "cuda")
        self.threads = [ThreadPoolExecutor(1) for _ in range(size)]
        self.streams = [xp.cuda.Stream(non_blocking=True) for _ in range(size if self.fast else 0)]
        block = -(-kernels.DeviceWindow.block_bytes(size, staging) // LINE) * LINE
        total = room + block
        self.arenas = [self._raw(total) for _ in range(size)]
        bases = [self._address(x) for x in self.arenas]
        self.used = [block] * size
        self._settle()
        self.windows = [
            kernels.DeviceWindow(rank, size, bases, bases, [total] * size, staging, blocks, False)
            for rank in range(size)
        ]
        for window in self.windows:
            window.set_deadline(5.0)

    def _settle(self) -> None:
        """What the main thread has put there is there."""
        if self.fast:
            self.xp.cuda.get_current_stream().synchronize()

    def _raw(self, count: int) -> Any:
        raw = self.xp.zeros(count + LINE, np.uint8)
        return raw[-self._address(raw) % LINE :][:count]

    def _address(self, x: Any) -> int:
        return int(x.data.ptr if self.fast else x.ctypes.data)

    def empty(self, rank: int, shape: Sequence[int], dtype: Any) -> Any:
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        start = self.used[rank]
        self.used[rank] += -(-count // LINE) * LINE
        return self.arenas[rank][start : start + count].view(dtype).reshape(shape)

    def offset(self, rank: int, x: Any) -> int:
        return self._address(x.view(np.uint8)) - self._address(self.arenas[rank])

    def seconds(self, work: Callable[[int], Any], junk: Any) -> float:
        """Until all ranks have done work(rank), which they begin together."""
        if not self.fast:
            start = time.perf_counter()
            self.each(work)
            return time.perf_counter() - start
        cuda = self.xp.cuda
        main = cuda.get_current_stream()
        gate, last = cuda.Event(), cuda.Event()
        for _ in range(6):  # empties L2, and lasts longer than the ranks take to queue their work
            junk.data.memset_async(0, junk.nbytes, main)
        gate.record(main)

        def queue(rank: int) -> Any:
            self.streams[rank].wait_event(gate)
            work(rank)
            done = cuda.Event()
            done.record(self.streams[rank])
            return done

        for done in self._queued(queue):
            main.wait_event(done)
        last.record(main)
        last.synchronize()
        for window in self.windows:
            window.check()
        return 1e-3 * float(cuda.get_elapsed_time(gate, last))

    def each(self, work: Callable[[int], Any]) -> None:
        """Until all ranks have done work(rank)."""
        self._settle()
        self._queued(work)
        for stream in self.streams:
            stream.synchronize()
        for window in self.windows:
            window.check()

    def _queued(self, work: Callable[[int], Any]) -> list[Any]:
        def one(rank: int) -> Any:
            if not self.fast:
                return work(rank)
            with self.streams[rank]:
                kernels.set_stream(self.streams[rank].ptr)
                return work(rank)

        started = [self.threads[rank].submit(one, rank) for rank in range(self.size)]
        return [each.result() for each in started]

    def close(self) -> None:
        self.each(lambda rank: None)
        for rank, window in enumerate(self.windows):
            self.threads[rank].submit(window.close).result()
        for thread in self.threads:
            thread.shutdown()


def turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    for call in sides.values():
        for _ in range(3):
            call()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            found[name].append(call())
    return found


def all_reduce_norm(
    ranks: Ranks, rows: int, width: int, rounds: int, junk: Any, bandwidth: float
) -> dict[str, Any]:
    """float32 sums to a bfloat16 stream: with residual and layer norm in one kernel, or in two."""
    size, n = ranks.size, rows * width
    marks = list(ranks.used)
    leaves = Leaves.even(size, size)
    rng = np.random.default_rng(0)
    host = rng.standard_normal(n).astype(np.float32)
    arrays = []
    for rank in range(size):
        nodes = ranks.empty(rank, (1, n), float32)
        nodes[0] = ranks.xp.asarray(host * np.float32(1 + rank))
        residual, stream, normed, apart = (
            ranks.empty(rank, (rows, width), bfloat16) for _ in range(4)
        )
        fill(ranks.xp, residual, 1.0)
        weight, bias = (ranks.empty(rank, (width,), bfloat16) for _ in range(2))
        fill(ranks.xp, weight, 1.0)
        fill(ranks.xp, bias, 0.5)
        mean, rstd = (ranks.empty(rank, (rows,), float32) for _ in range(2))
        arrays.append((nodes, residual, stream, normed, apart, weight, bias, mean, rstd))
    bounds = [rows * r // size * width for r in range(size + 1)]
    counts, merges = [1] * size, leaves.merges()

    def spec() -> Any:
        return kernels.ReduceSpec(counts, merges, bounds, 1, "sum", True)

    fused, plain = [], []
    for rank, (nodes, residual, stream, normed, apart, weight, bias, mean, rstd) in enumerate(
        arrays
    ):
        window = ranks.windows[rank]
        norm = weight, bias, 1e-5, normed, mean, rstd
        fused.append(window.reduction(nodes, spec(), None, stream, residual, norm))
        plain.append(window.reduction(nodes, spec(), None, apart))

    def one(rank: int) -> None:
        ranks.windows[rank].launch(fused[rank], 0)

    def two(rank: int) -> None:
        ranks.windows[rank].launch(plain[rank], 0)
        _, residual, stream, normed, apart, weight, bias, mean, rstd = arrays[rank]
        kernels.layer_norm_forward(apart, residual, weight, bias, 1e-5, stream, normed, mean, rstd)

    def reduced(rank: int) -> None:
        ranks.windows[rank].launch(plain[rank], 0)

    ranks.each(one)
    expected = [as_host(ranks.xp, x[3]).tobytes() for x in arrays]
    ranks.each(two)
    assert [as_host(ranks.xp, x[3]).tobytes() for x in arrays] == expected, (
        "one kernel's bits differ"
    )
    assert len(set(expected)) == 1, "ranks differ"
    sides = {
        "fused": lambda: ranks.seconds(one, junk),
        "separate": lambda: ranks.seconds(two, junk),
        "all_reduce": lambda: ranks.seconds(reduced, junk),
    }
    times = turns(sides, rounds)
    # every rank's sums are read once, or by all where little is added by every rank itself
    read = size * 4 * n * (size if fused[0].once else 1)
    moved = read + 2 * n * (size if fused[0].once else 1) + size * 2 * 2 * n
    middle = statistics.median(times["fused"])
    row = {
        "rows": rows, "width": width, "bytes": 4 * n, "once": bool(fused[0].once), "moved": moved,
        "seconds": times, "of a copy": moved / middle / 1e9 / bandwidth,
        "fused / separate": ratio_text(times["fused"], times["separate"]),
    }  # fmt: skip
    print(
        f"all_reduce + residual + norm, {4 * n:>11} bytes, {'once ' if row['once'] else 'twice'}"
        f" {1e6 * middle:9.1f} us, {row['of a copy']:.0%} of a copy; separate: "
        f"{row['fused / separate']}; all_reduce alone "
        f"{1e6 * statistics.median(times['all_reduce']):.1f} us",
        flush=True,
    )
    ranks.used[:] = marks
    return row


def update(ranks: Ranks, n: int, rounds: int, junk: Any, bandwidth: float) -> dict[str, Any]:
    """AdamW with float32 gradients and bfloat16 weights: in one kernel, or reduce_scatter, adamw of
    the own slice, all_gather."""
    size, xp = ranks.size, ranks.xp
    marks = list(ranks.used)
    bounds = [n // 64 * r // size * 64 for r in range(size)] + [n]
    merges = Leaves.even(size, size).merges()
    host = np.random.default_rng(0).random(n).astype(np.float32)
    settings = (0.5, 1e-4, 0.9, 0.95, 1e-8, 0.1, 3)
    fused, scatter, gather, apart = [], [], [], []
    states, weights = [], []
    lengths = [2 * (b - a) for a, b in pairwise(bounds)]
    for rank, window in enumerate(ranks.windows):
        own = slice(bounds[rank], bounds[rank + 1])
        grad = ranks.empty(rank, (1, n), float32)
        grad[0] = xp.asarray(host * np.float32(1 + rank))
        state = [ranks.empty(rank, (own.stop - own.start,), float32) for _ in range(3)]
        weight = ranks.empty(rank, (n,), bfloat16)
        total = ranks.empty(rank, (own.stop - own.start,), float32)
        states.append(state)
        weights.append(weight)
        spec = kernels.ReduceSpec([1] * size, merges, bounds, 1, "sum", True)
        fused.append(window.reduce_update_gather(grad, spec, (*settings, *state), weight))
        spec = kernels.ReduceSpec([1] * size, merges, bounds, 1, "sum", False)
        scatter.append(window.reduction(grad, spec, None, total))
        raw = weight.view(np.uint8)
        gather.append(window.all_gather(raw[2 * own.start : 2 * own.stop], lengths, raw))
        apart.append((total, *settings, *state, weight[own]))

    def reset() -> None:
        for rank, state in enumerate(states):
            for x in state:
                x[...] = xp.asarray(host[bounds[rank] : bounds[rank + 1]])
        if ranks.fast:
            xp.cuda.get_current_stream().synchronize()

    def one(rank: int) -> None:
        ranks.windows[rank].launch(fused[rank], 0)

    def three(rank: int) -> None:
        ranks.windows[rank].launch(scatter[rank], 0)
        kernels.adamw(*apart[rank])
        ranks.windows[rank].launch(gather[rank], 0)

    found = []
    for work in (one, three):
        reset()
        ranks.each(work)
        found.append([as_host(xp, weight).tobytes() for weight in weights])
    assert found[0] == found[1], "one kernel's bits differ"
    assert len(set(found[0])) == 1, "ranks differ"
    times = turns(
        {"fused": lambda: ranks.seconds(one, junk), "separate": lambda: ranks.seconds(three, junk)},
        rounds,
    )
    moved = n * (4 * size + 24 + 2 * size)
    middle = statistics.median(times["fused"])
    row = {
        "parameters": n, "moved": moved, "seconds": times,
        "of a copy": moved / middle / 1e9 / bandwidth,
        "fused / separate": ratio_text(times["fused"], times["separate"]),
    }  # fmt: skip
    print(
        f"reduce_update_gather, {n:>11} parameters {1e6 * middle:9.1f} us, "
        f"{row['of a copy']:.0%} of a copy; separate: {row['fused / separate']}",
        flush=True,
    )
    ranks.used[:] = marks
    return row


def fill(xp: Any, x: Any, value: float) -> None:
    bits = np.full(1, value, np.float32).astype(bfloat16).view(np.uint16)[0]
    x.view(np.uint16)[...] = xp.uint16(bits)


def as_host(xp: Any, x: Any) -> Any:
    return x if xp is np else x.view(np.uint16).get()


def started(text: str | None, room: int) -> tuple[argparse.Namespace, Ranks, Any, dict[str, Any]]:
    """The arguments, ranks with so many bytes each (few on fibers), what empties L2, and what the
    JSON begins with."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--small", action="store_true")
    a = parser.parse_args()
    device = backend.use("cuda")
    import cupy

    xp: Any = cupy if hasattr(cupy, "asarray") else np  # the stand-in has none
    fast = xp is not np
    print(device, flush=True)
    junk = xp.empty(1 << 28 if fast else 1 << 10, np.uint8)
    blocks = kernels.DeviceWindow.resident_blocks() // a.ranks if fast else 2
    ranks = Ranks(a.ranks, room if fast else 1 << 22, xp, STAGING if fast else 4096, blocks)
    return a, ranks, junk, {"device": device, "ranks": a.ranks, "blocks": blocks}


def main() -> None:
    a, ranks, junk, found = started(__doc__, 3 << 30)
    bandwidth = copy_bandwidth(ranks.xp, a.rounds, ranks.fast)
    found |= {"copy GB/s": bandwidth, "rows": [], "updates": []}
    sizes = [(1, 96), (3, 96)] if a.small else [
        (1, 512), (1, 2048), (2, WIDTH), (16, WIDTH), (64, WIDTH), (256, WIDTH), (1024, WIDTH),
        (4096, WIDTH), (16384, WIDTH),
    ]  # fmt: skip
    try:
        for rows, width in sizes:
            row = all_reduce_norm(ranks, rows, width, a.rounds, junk, bandwidth)
            found["rows"].append(row)
        for n in [1000] if a.small else [1 << 20, 1 << 24, 1 << 26]:
            found["updates"].append(update(ranks, n, a.rounds, junk, bandwidth))
        ranks.close()
    finally:
        if a.json:
            a.json.write_text(json.dumps(found, indent=1))


def copy_bandwidth(xp: Any, rounds: int, fast: bool) -> float:
    """GB/s read and written by a large copy on one stream."""
    x = xp.zeros(1 << 30 if fast else 1 << 16, np.uint8)
    y = xp.empty_like(x)
    if not fast:
        return 1.0
    cuda, times = xp.cuda, []
    stream = cuda.get_current_stream()
    for _ in range(rounds + 3):
        first, last = cuda.Event(), cuda.Event()
        first.record(stream)
        y.data.copy_from_device_async(x.data, x.nbytes, stream)
        last.record(stream)
        last.synchronize()
        times.append(1e-3 * cuda.get_elapsed_time(first, last))
    return 2e-9 * float(x.nbytes) / statistics.median(times[3:])


if __name__ == "__main__":
    main()
