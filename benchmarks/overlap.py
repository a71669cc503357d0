"""How much of the gradients' way between two nodes a training step hides behind its backward pass.

python benchmarks/overlap.py [--model 30M] [--rates none,10gbit,1gbit] [--steps 6] [--python PYTHON]
                             [--json FILE]

As root: starts a Slurm of two nodes on this machine (tests/cluster/slurm-cluster: network
namespaces, links shaped to each rate), trains GPT with one rank a node, data 2, ZeRO, and reads the
run's metrics. Prints seconds a step and what of them the ranks spent on communication instead of
computing; beside them what the bytes of gradients and weights take on the link, all of which a step
without overlap would show. PYTHON has plait and the mpich wheel.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sizes import BATCH, GPT, VOCABULARY, positions

CLUSTER = Path(__file__).resolve().parents[1] / "tests/cluster/slurm-cluster"
RATES = {"10gbit": 10e9, "1gbit": 1e9}  # bits a second


def cluster(*words: object) -> str:
    done = subprocess.run([str(CLUSTER), *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def config(model: str, steps: int) -> str:
    sizes = "\n".join(f"{key} = {value}" for key, value in GPT[model].items())
    batch = BATCH[model]
    return f"""
[model]
kind = "gpt"
{sizes}
[data]
kind = "synthetic"
vocabulary = {VOCABULARY}
[train]
steps = {steps}
batch = {2 * batch}
microbatch = {batch}
precision = "bfloat16"
[optimizer]
kind = "adamw"
clip = 1.0
[evaluate]
batches = 1
"""


def train(model: str, steps: int, python: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of the steps after the second."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    (folder / "gpt.toml").write_text(config(model, steps))
    words = [
        "-m",
        "plait",
        "train",
        folder / "gpt.toml",
        f"runs_dir={folder / 'runs'}",
        "threads=1",
    ]
    slurm = ["srun", "-N", 2, "--ntasks-per-node=1", "--mpi=pmi2", "--kill-on-bad-exit=1"]
    slurm.append("--cpu-bind=none")  # each node would take core 0 of this machine
    cluster("run", *slurm, python, *words, "layout=2x1x1", "layout.zero=1")
    lines = (folder / "runs/gpt/metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row.get("step", 0) >= 2 and "loss" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(GPT), default="30M")
    parser.add_argument("--rates", default="none,10gbit,1gbit")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="plait-overlap-", dir="/var/tmp"))
    os.environ["SLURM_CLUSTER_DIR"] = str(folder / "cluster")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster goes down
    found = {}
    try:
        cluster("up", 2, "--cpus", 1)
        for rate in a.rates.split(","):
            cluster("net", "--bandwidth", rate)
            rows = train(a.model, a.steps, a.python, folder)
            found[rate] = rows
            seconds = statistics.median(row["step_seconds"] for row in rows)
            exposed = [row["exposed_communication_seconds"] / row["step_seconds"] for row in rows]
            text = f"{a.model}, {rate:>7}: {seconds:7.3f} s a step, exposed communication "
            text += f"{statistics.median(exposed):6.1%} ({min(exposed):.1%}..{max(exposed):.1%})"
            if rate in RATES:
                wire = 8 * sent(a.model) / RATES[rate]
                text += f"; its bytes take {wire:.3f} s on the link"
            print(text, flush=True)
    finally:
        cluster("down")
        shutil.rmtree(folder)
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


def sent(model: str) -> int:
    """Bytes of a step each way: half of the float32 gradients (of the embedding, the rows that
    occur; the tied head has its own) and of the bfloat16 weights."""
    from plait import models

    specs = models.gpt(vocabulary=VOCABULARY, **GPT[model])
    parameters = sum(spec.parameters for spec in specs)  # the head's in place of the embedding's
    rows = min(BATCH[model] * positions(model), VOCABULARY) * GPT[model]["hidden_dim"]
    return 2 * (parameters + rows) + parameters


if __name__ == "__main__":
    main()
