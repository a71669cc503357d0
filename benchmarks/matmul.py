"""bfloat16 matrix products on one core: plait and PyTorch (oneDNN) in turn.

python benchmarks/matmul.py [--rounds 9] [--torch PYTHON] [--json FILE]: each side rounds its result
to bfloat16, into an array that is there already. Prints GFLOP/s, and how many times as fast plait
is (median of the rounds, and range). Weight gradients (TN) are float32 in plait, as it trains.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from turns import Side, ratio_text, rounds, serve

SHAPES = [
    (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (2048, 768, 3072), (2048, 3072, 768),
    (2048, 768, 2304), (2048, 384, 1536), (2048, 768, 50257),
]  # fmt: skip
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def worker(m: int, k: int, n: int, kind: str) -> None:
    import numpy as np

    from plait.backend import bfloat16, empty, float32, kernels

    kernels.set_threads(1)
    random = np.random.default_rng(0)

    def numbers(*shape: int) -> Any:
        return random.standard_normal(shape, float32).astype(bfloat16)

    a = numbers(k, m) if kind == "TN" else numbers(m, k)
    b = numbers(n, k) if kind == "NT" else numbers(k, n)
    out = empty((m, n), float32 if kind == "TN" else bfloat16)
    calls = max(1, round(4e9 / (2 * m * k * n)))

    def step() -> None:
        for _ in range(calls):
            kernels.matmul(a, b, kind == "TN", kind == "NT", [0, k], False, 0, None, out)

    serve(0, step, lambda: {"calls": calls, "path": kernels.isa()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--torch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=4)
    a = parser.parse_args()
    if a.worker:
        m, k, n, kind = a.worker
        worker(int(m), int(k), int(n), kind)
        return
    found, ratios = {}, []
    for shape in SHAPES:
        for kind in ("NT", "NN", "TN"):
            size = [*map(str, shape), kind]
            sides = {"plait": Side([sys.executable, __file__, "--worker", *size], 1, ONE_THREAD)}
            if a.torch:
                peer = str(Path(__file__).with_name("peers") / "torch_matmul.py")
                sides["torch"] = Side([a.torch, peer, *size], 1, ONE_THREAD)
            rounds(sides, a.rounds)
            work = 2e-9 * math.prod(shape)
            text = f"{' x '.join(size[:3]):20} {kind}"
            for name, side in sides.items():
                side.close()
                rate = work * side.about["calls"] / statistics.median(side.seconds)
                text += f"  {name} {rate:6.1f} GFLOP/s"
            if a.torch:
                own, other = sides["plait"].seconds, sides["torch"].seconds
                text += f"  plait is {ratio_text(own, other)}"
                ratios.append(statistics.median(other) / statistics.median(own))
            print(text, flush=True)
            found[" ".join(size)] = {name: side.seconds for name, side in sides.items()}
    if ratios:
        print(f"geometric mean of {len(ratios)} medians: {statistics.geometric_mean(ratios):.2f}")
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
