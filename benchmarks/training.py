"""One rank of plait in training, for benchmarks that let it take turns with others.

python training.py MODEL LAYOUT BATCH MICROBATCH GRAINS, started by side(): one thread a rank,
AdamW, bfloat16; BATCH is of all replicas, MICROBATCH of one; GRAINS "auto", or the "layout"'s own.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

from sizes import GPT, RESNET, VIT, positions, vocabulary
from turns import Side, serve

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def side(
    model: str, layout: str, batch: int, microbatch: int, grains: str = "auto", file: str = __file__
) -> Side:
    """A run that waits for its turn; file: a program other than this one that makes a Run."""
    from plait.launch.mpi import mpiexec

    ranks = sizes(layout)[3]
    words = [model, layout, str(batch), str(microbatch), grains]
    command = [str(mpiexec()), "-n", str(ranks), sys.executable, "-m", "mpi4py", file, *words]
    return Side(command, ranks, ONE_THREAD)


def sizes(layout: str) -> tuple[int, int, int, int]:
    """Data, tensor, pipeline of such as 2x1x1, and how many ranks that is."""
    data, tensor, pipeline = map(int, layout.split("x"))
    return data, tensor, pipeline, data * tensor * pipeline


def problem(model: str, batch: int) -> Any:
    """The layers, and a batch of inputs and targets."""
    import numpy as np

    from plait import models

    random = np.random.default_rng(0)
    if model in VIT or model in RESNET:
        about = {**VIT, **RESNET}[model]
        inputs = random.standard_normal((batch, *about["input_shape"]), np.float32)
        specs = (models.vit if model in VIT else models.resnet)(**about)
        return specs, inputs, random.integers(0, about["classes"], batch, np.int32)
    tokens = random.integers(0, vocabulary(model), (batch, positions(model) + 1), np.int32)
    specs = models.gpt(vocabulary=vocabulary(model), **GPT[model])
    return specs, tokens[:, :-1].copy(), tokens[:, 1:].copy()


class Run:
    """The engine that side()'s words ask for: step() takes the next step, all ranks together."""

    def __init__(self, words: list[str]):
        from plait.backend import kernels
        from plait.comm.work import communication_seconds
        from plait.mesh import Mesh
        from plait.optim import AdamW
        from plait.train.engine import Engine, Settings
        from plait.train.grains import auto_grains

        model, layout, batch, microbatch, grains = words
        kernels.set_threads(1)
        data, tensor, pipeline, _ = sizes(layout)
        specs, inputs, targets = problem(model, int(batch))
        leaves = (data, tensor) if grains == "layout" else auto_grains(specs, int(batch))
        self.mesh = Mesh(
            data, tensor, pipeline, grains=dict(zip(("data", "tensor"), leaves, strict=True))
        )
        self.engine = Engine(
            specs, self.mesh, AdamW(weight_decay=0.1), Settings(int(batch), int(microbatch))
        )
        mine = slice(self.engine.share.start, self.engine.share.stop)
        self.samples = inputs[mine], targets[mine]
        self.communication: Callable[[], float] = communication_seconds
        self.exposed: list[float] = []

    def step(self) -> None:
        before = self.communication()
        self.engine.step(len(self.exposed), 3e-4, *self.samples)
        self.mesh.world.barrier()
        self.exposed.append(self.communication() - before)

    def about(self) -> dict[str, Any]:
        """Peak MB of the rank that needs most; of each rank, the seconds of a step (median) in
        which it did not compute but communicated or waited; and what rank 0's pool says."""
        from plait.backend import kernels
        from plait.report import peak_bytes

        own = peak_bytes() >> 20, statistics.median(self.exposed[2:] or self.exposed)
        peaks, exposed = zip(*self.mesh.world.all_gather_object(own), strict=True)
        return {"memory": max(peaks), "exposed": exposed, **kernels.memory_use()}

    def serve(self) -> None:
        serve(self.mesh.world.rank, self.step, self.about)


if __name__ == "__main__":
    Run(sys.argv[1:]).serve()
