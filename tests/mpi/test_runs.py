"""`plait train` from the command line: the same run at other layouts, resumed, refused, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from plait.launch.mpi import mpiexec

RANKS = ([], ["--ranks", "2"])
CONFIG = """
name = "small"
seed = 4
[model]
kind = "gpt"
layers = 3
hidden_dim = 32
heads = 4
sequence_length = 16
dropout = 0.1
[data]
kind = "synthetic"
vocabulary = 97
samples = 50
[train]
steps = 8
batch = 8
microbatch = 2
precision = "{precision}"
[optimizer]
clip = 0.7
learning_rate = 3e-3
[checkpoint]
every = 4
[evaluate]
every = 3
batches = 2
"""


def plait(folder: Path, *arguments: str, limit: float = 100.0) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    precision = "float32" if "float32" in folder.name else "bfloat16"
    (folder / "small.toml").write_text(CONFIG.format(precision=precision))
    return subprocess.run(
        [sys.executable, "-m", "plait", *arguments],
        cwd=folder, env=os.environ, capture_output=True, text=True, timeout=limit,
    )  # fmt: skip


def train(folder: Path, layout: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    ranks = str(eval(layout.replace("x", "*")))
    arguments = ["--ranks", ranks] if ranks != "1" else []
    return plait(folder, "train", "small.toml", *arguments, f"layout={layout}", *overrides)


def rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "runs/small/metrics.jsonl").read_text()
    kept = ("step", "loss", "grad_norm", "learning_rate", "validation_loss")
    return [{k: v for k, v in json.loads(line).items() if k in kept} for line in text.splitlines()]


def weights(folder: Path) -> dict[str, Any]:
    """Hash of every array of the newest checkpoint, whole."""
    from plait import checkpoint

    newest = checkpoint.latest(folder / "runs/small/checkpoints")
    assert newest is not None
    out = folder / "whole.safetensors"
    out.unlink(missing_ok=True)
    checkpoint.export(newest, out)
    from safetensors.numpy import load_file

    return {name: array.tobytes() for name, array in load_file(out).items()}


def test_a_run_is_the_same_at_every_layout_and_over_a_resume(tmp_path: Path) -> None:
    one = tmp_path / "one"
    done = train(one, "1x1x1")
    assert done.returncode == 0, done.stderr
    four = tmp_path / "four"
    done = train(four, "1x2x2", "layout.zero=1", "train.sequence_parallel=true")
    assert done.returncode == 0, done.stderr
    assert rows(one) == rows(four)
    assert weights(one) == weights(four)
    # Stopped after step 4 in one layout, gone on in another; then asked again.
    resumed = tmp_path / "resumed"
    done = train(resumed, "2x1x1", "train.recompute=layer")
    assert done.returncode == 0, done.stderr
    last = resumed / "runs/small/checkpoints/step-00000008"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    done = train(resumed, "1x1x2", "train.schedule=gpipe")
    assert done.returncode == 0, done.stderr
    assert rows(resumed) == rows(one)
    assert weights(resumed) == weights(one)
    done = train(resumed, "1x1x1")
    assert done.returncode == 0
    assert "has finished" in done.stderr


def test_a_model_that_one_rank_cannot_hold(tmp_path: Path) -> None:
    """At 1x1x1 a message with what is needed, the limit and the mend; it trains where that says."""
    big = ("model.hidden_dim=256", "model.layers=8", "train.steps=1", "data.vocabulary=512")
    limits = (*big, "memory=0.2", "evaluate.batches=1")
    done = train(tmp_path / "a", "1x1x1", *limits)
    assert done.returncode == 2, done.stderr
    assert "needs" in done.stderr
    assert "the limit is" in done.stderr
    assert "smallest change that fits" in done.stderr
    for layout, *more in (("1x2x1",), ("1x1x2",), ("2x1x1", "layout.zero=1")):
        done = train(tmp_path / layout, layout, *limits, *more)
        assert done.returncode == 0, (layout, done.stderr)
        assert "planned" in done.stderr


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    done = train(
        tmp_path / "a", "1x1x2", "optimizer.learning_rate=1e30", "optimizer.weight_decay=0"
    )
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("plait:")]
    assert len(said) == 1
    assert "Lower optimizer.learning_rate" in said[0]


def test_sigterm_saves_and_ends_with_75(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "small.toml").write_text(CONFIG.format(precision="bfloat16"))
    process = subprocess.Popen(
        [sys.executable, "-m", "plait", "train", "small.toml", "--ranks", "2", "layout=2x1x1",
         "train.steps=100000", "evaluate.every=0"],
        cwd=folder, env=os.environ, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 75, rest
    assert "goes on from there" in rest
    saved = sorted((folder / "runs/small/checkpoints").iterdir())
    assert saved
    done = train(folder, "1x1x1", f"train.steps={int(saved[-1].name[5:]) + 1}", "evaluate.every=0")
    assert done.returncode == 0, done.stderr


def test_a_run_is_evaluated_on_more_ranks_than_it_had_grains(tmp_path: Path) -> None:
    done = train(tmp_path / "a", "1x1x1", "train.batch=1", "train.microbatch=1", "train.steps=1")
    assert done.returncode == 0, done.stderr
    alone, two = (plait(tmp_path / "a", "evaluate", "runs/small", *more) for more in RANKS)
    assert alone.returncode == two.returncode == 0, two.stderr
    assert alone.stdout == two.stdout


def test_one_rank_generates_for_all(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "a.txt").write_text("some words and more words\n" * 50)
    text = 'data={kind="text", path="a.txt", vocabulary=300}'
    done = train(folder, "1x1x1", text, "train.steps=1")
    assert done.returncode == 0, done.stderr
    generate = ["-m", "plait", "generate", "runs/small", "--prompt", "some", "--tokens", "5"]
    for launch in ([], [str(mpiexec()), "-n", "2"]):
        done = subprocess.run(
            [*launch, sys.executable, *generate],
            cwd=folder, env=os.environ, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("some") == 1
