"""A run goes on with the same config, the same data and checkpoints that can be read, or says why
not; what it is refused leaves everything as it was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait import Mesh, data, models, optim
from plait import train as training
from plait.comm.alone import Alone
from plait.errors import UserError

CONFIG = """
[model]
kind = "gpt"
layers = 1
hidden_dim = 16
heads = 2
sequence_length = 8
[data]
kind = "text"
path = "a.txt"
vocabulary = 270
[train]
steps = 1
batch = 2
"""


SYNTHETIC = """
[model]
kind = "mlp"
hidden_dim = 4
[data]
kind = "synthetic"
input_shape = [2, 2, 1]
classes = 3
samples = 20
[train]
steps = 6
batch = 4
[checkpoint]
every = 2
"""


def plait(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code, and all that was said."""
    done = subprocess.run(
        [sys.executable, "-m", "plait", *arguments],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def train(folder: Path, *overrides: str) -> tuple[int, str]:
    """Exit code, and the last line of what was said."""
    code, said = plait(folder, "train", "small.toml", *overrides)
    return code, said.splitlines()[-1]


def trainer(folder: Path, learning_rate: float = 1e-3) -> training.Trainer:
    """One on synthetic data in this process, which goes on from the folder."""
    samples = data.synthetic(samples=20, input_shape=(2, 2, 1), classes=3)
    return training.Trainer(
        models.mlp(hidden_dim=4, input_shape=(2, 2, 1), classes=3),
        samples,
        mesh=Mesh(comm=Alone()),
        optimizer=optim.AdamW(learning_rate=learning_rate),
        batch=4,
        run=folder,
    )


def saved(folder: Path, *steps: int) -> None:
    """Trains to the last of steps, with a checkpoint after each."""
    with trainer(folder) as each:
        for step in steps:
            for _ in each.steps(step):
                pass
            each.save()


def rows(folder: Path, name: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def cut(folder: Path, step: int) -> None:
    """Cuts the last byte off a checkpoint's file."""
    file = folder / "checkpoints" / f"step-{step:08d}" / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def test_what_a_run_goes_on_with(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(CONFIG)
    text, moved = tmp_path / "a.txt", tmp_path / "b.txt"
    text.write_text("some words and more words\n" * 50)
    assert train(tmp_path)[0] == 0
    text.rename(moved)
    code, _ = train(tmp_path, "train.steps=2", "data.path=b.txt")
    assert code == 0
    text.write_text("other words and more of them\n" * 50)
    code, line = train(tmp_path, "train.steps=3")
    assert code == 2
    assert "other data: the content of data.path has changed" in line
    code, line = train(tmp_path, "model.layers=2", "train.batch=4", "data.path=b.txt")
    assert code == 2
    assert "another model.layers, train.batch: give" in line


def test_newer_checkpoints_that_cannot_be_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 2, 4)
    cut(tmp_path, 4)
    with trainer(tmp_path) as each:
        assert each.next_step == 2
    said = capsys.readouterr().err.splitlines()
    assert "truncated" in said[0]
    assert "passing over step-00000004" in said[0]
    assert said[1:] == [f"goes on from {tmp_path}/checkpoints/step-00000002, after step 2"]
    (event,) = (row for row in rows(tmp_path, "events") if row["event"] == "resume")
    assert event["passed_over"] == [said[0]]
    assert [row["step"] for row in rows(tmp_path)] == [0, 1]


def test_no_checkpoint_that_can_be_read_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SYNTHETIC)
    run = tmp_path / "runs" / "small"
    assert train(tmp_path)[0] == 0
    for step in (2, 4, 6):
        cut(run, step)
    before = rows(run)
    code, line = train(tmp_path, "train.steps=8", "optimizer.learning_rate=1.0")
    assert code == 2
    assert all(f"passing over step-0000000{step}" in line for step in (2, 4, 6))
    assert "--fresh" in line
    assert rows(run) == before
    checkpoints = run / "checkpoints"
    shutil.rmtree(checkpoints)
    checkpoints.symlink_to(checkpoints.name)  # an error of the disk, for root too
    code, line = train(tmp_path)
    assert code == 2
    assert line.startswith("plait: ")
    assert "Too many levels of symbolic links" in line or "cannot be read" in line


def test_a_run_without_a_checkpoint_starts_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with trainer(tmp_path) as each:
        for _ in each.steps(3):
            pass
    with trainer(tmp_path) as each:
        assert "it starts over, and the 3 rows" in capsys.readouterr().err
        for _ in each.steps(2):
            pass
    assert [row["step"] for row in rows(tmp_path)] == [0, 1]


def test_a_checkpoint_that_stands_aside_is_put_back(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    path = tmp_path / "checkpoints" / "step-00000002"
    path.rename(path.with_name(".step-00000002.replaced-abc"))  # as a kill may leave it
    with trainer(tmp_path) as each:
        assert each.next_step == 2
    assert path.exists()


def test_a_trainer_keeps_its_run_until_it_is_closed(tmp_path: Path) -> None:
    with trainer(tmp_path), pytest.raises(UserError, match="this very process"):
        trainer(tmp_path)
    trainer(tmp_path).close()


def test_what_is_refused_makes_and_moves_nothing(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SYNTHETIC)
    for wrong in ("memory=1e-6", "layout=1x1x9", "train.batch=0"):
        code, _ = train(tmp_path, wrong, "numerics.grains={data=4, tensor=1}")
        assert code == 2
        assert not (tmp_path / "runs").exists()
    assert train(tmp_path, "train.steps=1")[0] == 0
    for wrong in ("memory=1e-6", "layout=1x1x9"):
        assert train(tmp_path, "--fresh", wrong)[0] == 2
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["small"]
    assert train(tmp_path, "--fresh", "train.steps=2")[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["small", "small.old-1"]


def test_other_bits_only_when_told(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SYNTHETIC)
    assert train(tmp_path, "train.steps=2")[0] == 0
    assert train(tmp_path, "train.steps=3", "numerics.check_every=1")[0] == 0
    grains = "numerics.grains={data=2, tensor=1}"
    code, line = train(tmp_path, "train.steps=4", grains)
    assert code == 2
    assert "step-00000003 was trained with grains 4 x 2, here 2 x 1: from there on" in line
    assert line.endswith("than at one go; --other-bits (other_bits=True) goes on so")
    code, said = plait(tmp_path, "train", "small.toml", "train.steps=4", grains, "--other-bits")
    assert code == 0, said
    assert "2 x 1: from there on the bits are others, as --other-bits allows" in said
    code, said = plait(tmp_path, "train", "small.toml", "train.steps=5", grains)
    assert code == 0, said
    assert "bits are others" not in said


def test_a_finished_run_gets_the_evaluation_that_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SYNTHETIC)
    metrics = tmp_path / "runs" / "small" / "metrics.jsonl"
    assert train(tmp_path)[0] == 0
    whole = metrics.read_text()
    last = whole.splitlines(keepends=True)[-1]
    assert "validation_loss" in last
    metrics.write_text(whole.removesuffix(last))
    assert train(tmp_path)[0] == 0
    assert metrics.read_text() == whole
    assert train(tmp_path)[0] == 0
    assert metrics.read_text() == whole


OWN = """
import numpy as np
from plait.models import mlp
from plait.train import engine

def broken(input_shape, classes):
    step = engine.Engine.step
    def fail(self, *arguments):
        np.zeros(2) + np.zeros(3)
    engine.Engine.step = fail
    return mlp(hidden_dim=4, input_shape=input_shape, classes=classes)
"""


def test_a_value_error_in_a_step_is_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SYNTHETIC)
    (tmp_path / "own.py").write_text(OWN)
    code, said = plait(tmp_path, "train", "small.toml", 'model={kind="own:broken"}')
    assert code == 3
    assert "np.zeros(2) + np.zeros(3)" in said


def test_what_is_not_finite_names_the_step_as_the_screen_does(tmp_path: Path) -> None:
    each = trainer(tmp_path, learning_rate=1e38)
    with each, pytest.raises(UserError, match=r"^step 2 of 20: loss"):
        for _ in each.steps(20):
            pass


def test_a_batch_without_a_target_is_the_users(tmp_path: Path) -> None:
    x, y = np.zeros((4, 3), "f4"), np.full((4, 1), -1, "i4")
    with (
        training.Trainer(
            models.mlp(hidden_dim=4, input_shape=(3,), classes=2),
            data.arrays(x, y),
            mesh=Mesh(comm=Alone()),
            optimizer=optim.SGD(learning_rate=0.1),
            batch=4,
        ) as each,
        pytest.raises(UserError, match="every target of the batch is masked"),
    ):
        next(each.steps(1))
