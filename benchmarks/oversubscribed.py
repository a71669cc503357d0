"""More ranks than cores: a step of 8 ranks on 2 cores against one of 2 ranks, the same total work.

python benchmarks/oversubscribed.py [--rounds 5]: starts both layouts in turn with mpiexec and
prints the median step of each round and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import numpy as np

LAYOUTS = {"2x1x1": 2, "8x1x1": 8, "2x2x2": 8, "1x2x4": 8}
STEPS = 8


def worker(layout: str) -> None:
    from plait import models
    from plait.backend import kernels
    from plait.mesh import Mesh
    from plait.optim import AdamW
    from plait.train.engine import Engine, Settings

    kernels.set_threads(1)
    sizes = [int(size) for size in layout.split("x")]
    mesh = Mesh(*sizes, grains={"data": 8, "tensor": 2})
    specs = models.gpt(
        layers=4, hidden_dim=256, heads=4, vocabulary=4096, sequence_length=128
    )  # fmt: skip
    settings = Settings(batch=16, microbatch=2, zero=1)
    engine = Engine(specs, mesh, AdamW(), settings)
    tokens = np.random.default_rng(0).integers(0, 4096, (16, 129)).astype(np.int32)
    tokens = tokens[engine.share.start : engine.share.stop]
    times = []
    for step in range(STEPS):
        mesh.world.barrier()
        begin = time.perf_counter()
        engine.step(step, 1e-3, tokens[:, :-1].copy(), tokens[:, 1:].copy())
        mesh.world.barrier()
        times.append(time.perf_counter() - begin)
    if mesh.world.rank == 0:
        print(statistics.median(times[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    from plait.launch.mpi import mpiexec

    found: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for _ in range(arguments.rounds):
        for layout, ranks in LAYOUTS.items():
            command = [str(mpiexec()), "-n", str(ranks), sys.executable, "-m", "mpi4py", __file__]
            done = subprocess.run(
                [*command, "--worker", layout], capture_output=True, text=True, check=True
            )
            found[layout].append(float(done.stdout))
    base = found["2x1x1"]
    for layout, times in found.items():
        ratios = [t / b for t, b in zip(times, base, strict=True)]
        print(
            f"{layout}: {1e3 * statistics.median(times):.0f} ms a step "
            f"({1e3 * min(times):.0f}..{1e3 * max(times):.0f}), "
            f"{statistics.median(ratios):.2f} x 2x1x1 ({min(ratios):.2f}..{max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
