"""Trains a small GPT on the device's kernels at a layout, and prints what its state is.

mpiexec -n RANKS python tests/gpu/program.py LAYOUT MICROBATCH PRECISION STEPS, on rank 0:
{"digest": ..., "losses": [...]}; the bits must be those of every other layout and microbatch.
"""

from __future__ import annotations

import json
import sys

import plait
from plait import data, models, optim, train
from plait.train.digest import state_digest


def main() -> None:
    layout, microbatch, precision, steps = sys.argv[1:]
    layers = models.gpt(
        layers=4, hidden_dim=128, heads=4, vocabulary=500, sequence_length=64, dropout=0.1
    )
    trainer = train.Trainer(
        layers,
        data.synthetic(samples=64, vocabulary=500, sequence_length=64, seed=3),
        mesh=plait.Mesh(*map(int, layout.split("x"))),
        optimizer=optim.AdamW(learning_rate=1e-3),
        batch=8,
        microbatch=int(microbatch),
        precision=precision,  # type: ignore[arg-type]
        clip=1.0,
        seed=5,
        grains=(4, 2),
        backend="cuda",
    )
    losses = [step.loss for step in trainer.steps(int(steps))]
    digest = state_digest(trainer.engine)
    if trainer.mesh.world.rank == 0:
        print(json.dumps({"digest": digest, "losses": losses}), flush=True)


if __name__ == "__main__":
    main()
