"""Trains a small model with the CUDA kernels at a layout, and prints what its state is then.

mpiexec -n RANKS python tests/gpu/program.py BACKEND MODEL SIZE LAYOUT MICROBATCH PRECISION: BACKEND
"cuda", "fibers" (the CUDA kernels on the CPU) or "cpu", SIZE "small" or "large". Rank 0 prints
{"digest": ..., "losses": [...]}: the bits must be those of every other layout and microbatch.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import plait
from plait import data, models, optim, train
from plait.train.digest import state_digest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "fibers"), str(TESTS / "unit")]


def model(kind: str, small: bool) -> tuple[Any, Any]:
    """Samples of odd lengths, for which steps over their positions start afresh."""
    length, width = (12, 32) if small else (72, 256)
    about = {"layers": 2, "hidden_dim": width, "vocabulary": 50, "sequence_length": length}
    if kind == "resnet":
        samples = data.synthetic(samples=40, input_shape=(8, 8, 3), classes=5, seed=3)
        return models.resnet(input_shape=(8, 8, 3), classes=5, blocks=(1, 1), width=8), samples
    samples = data.synthetic(samples=40, vocabulary=50, sequence_length=length, seed=3)
    if kind == "llama":
        return models.llama(heads=4, kv_heads=2, **about), samples
    return models.gpt(heads=2, dropout=0.1, **about), samples


def main() -> None:
    backend, kind, size, layout, microbatch, precision = sys.argv[1:]
    with contextlib.ExitStack() as stack:
        if backend == "fibers":
            from fake_device import device
            from kernel_backends import fibers

            stack.enter_context(device(fibers()))
        layers, samples = model(kind, size == "small")
        trainer = train.Trainer(
            layers,
            samples,
            mesh=plait.Mesh(*map(int, layout.split("x"))),
            optimizer=optim.AdamW(learning_rate=1e-3),
            batch=8,
            microbatch=int(microbatch),
            precision=precision,  # type: ignore[arg-type]
            clip=1.0,
            seed=5,
            grains=(4, 2),
            backend="cpu" if backend == "cpu" else "cuda",
        )
        losses = [step.loss for step in trainer.steps(2)]
        digest = state_digest(trainer.engine)
        if trainer.mesh.world.rank == 0:
            print(json.dumps({"digest": digest, "losses": losses}), flush=True)


if __name__ == "__main__":
    main()
