"""Sides that take turns on one GPU, timed by events: plait's kernels and PyTorch's, on the same
numbers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from turns import ratio_text

from plait import backend
from plait.backend import bfloat16, kernels

Call = Callable[[], Any]
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def numbers(*shape: int, dtype: Any = bfloat16) -> tuple[Any, torch.Tensor]:
    """The same normal numbers for plait and for PyTorch; other ones each time."""
    global _stream
    _stream += 1
    wide = backend.empty(shape)
    kernels.random_normal(0, _stream, 0, 0.0, 1.0, wide)
    ours = backend.as_type(wide, dtype)
    kind = torch.bfloat16 if dtype == bfloat16 else torch.float32
    raw = ours.view(np.dtype(f"i{ours.dtype.itemsize}"))
    theirs = torch.as_tensor(raw, device=DEVICE) if CUDA else torch.from_numpy(raw.get())
    return ours, theirs.view(kind).clone()


_stream = 0
_junk: Any = None


def seconds(call: Call) -> float:
    global _junk
    if not CUDA:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    if _junk is None:
        _junk = torch.empty(1 << 28, dtype=torch.uint8, device=DEVICE)
    for _ in range(4):  # empties L2, and lasts longer than the host takes to start the call
        _junk.zero_()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    last.synchronize()
    return 1e-3 * float(first.elapsed_time(last))


def turns(sides: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    for call in sides.values():  # loads kernels, chooses algorithms
        for _ in range(3):
            call()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            found[name].append(seconds(call))
    return found


def near(ours: Any, theirs: torch.Tensor, most: float) -> float:
    """The relative distance of two results; an error if it is above `most`, or not a number."""
    a = backend.to_host(ours).astype(np.float32).ravel()
    b = theirs.float().cpu().numpy().ravel()
    distance = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))
    if not distance <= most:
        raise AssertionError(f"results differ by {distance:.2e}, at most {most:.0e} is fine")
    return distance


def report(
    what: str, sides: dict[str, Call], rounds: int, found: dict[str, Any], work: float, unit: str
) -> None:
    """work: what each call does, in 1e12 operations or 1e9 bytes."""
    times = turns(sides, rounds)
    ours = times["plait"]
    text = f"{what:44}"
    row: dict[str, Any] = {"seconds": times, "work": work, "unit": unit}
    for name, each in times.items():
        text += f"  {name} {work / statistics.median(each):7.1f} {unit}"
        if name != "plait":
            row[f"plait / {name}"] = statistics.median(b / a for a, b in zip(ours, each))
            text += f" ({ratio_text(ours, each)})"
    found[what] = row
    print(text, flush=True)
