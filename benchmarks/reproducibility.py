"""What the same bits at every layout cost: a step with grains "auto" against grains equal to the
layout.

python benchmarks/reproducibility.py [--rounds 7] [--batch 16] [--models 30M,124M] [--ranks 1,2]:
both engines live in one process and take steps in turn, so that a busy machine is busy for both.
Prints the median step of each and of the paired ratios; the memory of the gradients' chains,
computed and as the process grew; and what the checks of replicas and of the state cost a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

MODELS: dict[str, dict[str, int]] = {
    "tiny": {"layers": 2, "hidden_dim": 64, "heads": 4, "sequence_length": 32},
    "30M": {"layers": 6, "hidden_dim": 384, "heads": 6, "sequence_length": 256},
    "124M": {"layers": 12, "hidden_dim": 768, "heads": 12, "sequence_length": 256},
}
LAYOUTS = {1: ["1x1x1"], 2: ["2x1x1", "1x2x1"]}
VOCABULARY = 50257
EVERY = 100  # numerics.check_every


def worker(model: str, layout: str, batch: int, rounds: int) -> None:
    from plait import models
    from plait.autograd import SILENT
    from plait.backend import kernels
    from plait.mesh import Mesh
    from plait.optim import AdamW
    from plait.report import resident_bytes
    from plait.train.engine import Engine, Settings
    from plait.train.grains import auto_grains
    from plait.train.microbatch import auto_microbatch
    from plait.train.replicas import check_replicas
    from plait.train.state_check import StateCheck

    kernels.set_threads(1)
    sizes = [int(size) for size in layout.split("x")]
    sequence = MODELS[model]["sequence_length"]
    specs = models.gpt(vocabulary=VOCABULARY, **MODELS[model])
    settings = Settings(batch=batch, microbatch=auto_microbatch(specs, batch, sizes[0], sizes[2]))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (batch, sequence + 1))
    tokens = tokens.astype(np.int32)

    def build(grains: tuple[int, int]) -> tuple[Any, int]:
        mesh = Mesh(*sizes, grains={"data": grains[0], "tensor": grains[1]})
        engine = Engine(specs, mesh, AdamW(), settings)
        return engine, sum(bucket.grads.nbytes for bucket in engine.buckets)

    def step(engine: Any, number: int) -> float:
        mine = tokens[engine.share.start : engine.share.stop]
        engine.mesh.world.barrier()
        begin = time.perf_counter()
        engine.step(number, 1e-4, mine[:, :-1].copy(), mine[:, 1:].copy())
        engine.mesh.world.barrier()
        return time.perf_counter() - begin

    def check(engine: Any) -> float:
        """Seconds a step: of the state each time, of replicas each 100 steps."""
        state = StateCheck(engine, EVERY)
        begin = time.perf_counter()
        state.updated()
        state.reduced()
        middle = time.perf_counter()
        check_replicas(engine)
        engine.observe(SILENT)
        return middle - begin + (time.perf_counter() - middle) / EVERY

    own, auto = (sizes[0], sizes[1]), auto_grains(specs, batch)
    start = resident_bytes()
    base, base_bytes = build(own)
    step(base, 0)
    base_grown, start = resident_bytes() - start, resident_bytes()
    engine, engine_bytes = build(auto)
    step(engine, 0)
    engine_grown = resident_bytes() - start
    step(base, 1)
    step(engine, 1)
    pairs = [
        (step(base, i), step(engine, i)) if i % 2 else (step(engine, i), step(base, i))[::-1]
        for i in range(2, 2 + rounds)
    ]
    checks = [check(engine) for _ in range(9)]
    if engine.mesh.world.rank == 0:
        found = {
            "grains": auto, "pairs": pairs, "bytes": [base_bytes, engine_bytes],
            "grown": [base_grown, engine_grown], "checks": checks,
        }  # fmt: skip
        print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--models", default="30M,124M")
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--worker", nargs=2)
    a = parser.parse_args()
    if a.worker:
        worker(*a.worker, a.batch, a.rounds)
        return
    from plait.launch.mpi import mpiexec

    for model in a.models.split(","):
        for ranks in map(int, a.ranks.split(",")):
            for layout in LAYOUTS[ranks]:
                command = [str(mpiexec()), "-n", str(ranks), sys.executable, "-m", "mpi4py"]
                command += [__file__, "--worker", model, layout, "--batch", str(a.batch)]
                command += ["--rounds", str(a.rounds)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                report(model, layout, json.loads(done.stdout.splitlines()[-1]))


def report(model: str, layout: str, found: dict[str, Any]) -> None:
    own, auto = zip(*found["pairs"], strict=True)
    ratios = [b / a for a, b in found["pairs"]]
    before, after = found["bytes"]
    grains = "{} x {}".format(*found["grains"])
    print(
        f"{model} {layout}, grains {grains} against the layout's: "
        f"{statistics.median(auto):.3f} s a step against {statistics.median(own):.3f}, "
        f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f}..{max(ratios):.3f}); "
        f"gradient chains {after / 2**20:.0f} MiB a rank against {before / 2**20:.0f} (processes "
        f"grew by {found['grown'][1] / 2**20:.0f} and {found['grown'][0] / 2**20:.0f}); checks "
        f"{1e3 * statistics.median(found['checks']):.1f} ms a step, "
        f"{100 * statistics.median(found['checks']) / statistics.median(auto):.2f} %",
        flush=True,
    )


if __name__ == "__main__":
    main()
