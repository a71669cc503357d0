"""A matmul that also does GELU, its gradient or the residual, against one kernel after the other:
one core, in turn in one process.

python benchmarks/epilogue.py [--rounds 25] [--json F]: products of GPT 30M (384 wide, MLP of 1536,
2048 tokens a step). Prints each side's median in ms of CPU time, and how many times as fast the
fused kernel is (median of the rounds' ratios, and range).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from turns import ratio_text

from plait.backend import bfloat16, empty, float32, kernels

TOKENS = 2048
# kind, k, n, and whether b is stored (n, k)
PRODUCTS = [
    ("gelu", 384, 1536, True),
    ("gelu_backward", 384, 1536, True),
    ("residual", 1536, 384, False),
    ("residual", 384, 384, False),
]


def sides(kind: str, k: int, n: int, stored_nk: bool, dtype: Any) -> dict[str, Callable[[], None]]:
    random = np.random.default_rng(0)

    def numbers(*shape: int) -> Any:
        out = empty(shape, dtype)
        out[...] = random.standard_normal(shape, float32)
        return out

    a, b, other = (
        numbers(TOKENS, k),
        numbers(*((n, k) if stored_nk else (k, n))),
        numbers(TOKENS, n),
    )
    bias = None if kind == "gelu_backward" else numbers(n)
    out, between = (empty((TOKENS, n), dtype) for _ in range(2))
    product = a, b, False, stored_nk, [0, k], False, 0, bias

    def fused() -> None:
        kernels.matmul(*product, out, **{kind: other})

    def apart() -> None:
        kernels.matmul(*product, between)
        if kind == "gelu":
            kernels.gelu_forward(between, other)
        elif kind == "gelu_backward":
            kernels.gelu_backward(between, other, out)
        else:
            kernels.add([other, between], out)

    return {"fused": fused, "apart": apart, "product alone": lambda: kernels.matmul(*product, out)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    kernels.set_threads(1)
    found: dict[str, Any] = {"path": kernels.isa()}
    for dtype in (bfloat16, float32):
        for kind, k, n, stored_nk in PRODUCTS:
            calls = sides(kind, k, n, stored_nk, dtype)
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for index in range(a.rounds + 3):
                for name in list(calls) if index % 2 else list(reversed(calls)):
                    begin = time.process_time()
                    calls[name]()
                    if index >= 3:
                        seconds[name].append(time.process_time() - begin)
            text = f"{np.dtype(dtype).name:9} {TOKENS} x {k} x {n} {kind:14}"
            for name, each in seconds.items():
                text += f" {name} {1e3 * statistics.median(each):6.2f} ms "
            text += f" {ratio_text(seconds['fused'], seconds['apart'])}"
            print(text, flush=True)
            found[text[:40]] = seconds
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
