"""evaluate and generate take a run's folder as it is: its data or none, its newest checkpoint that
can be read, its own tokenizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
vocabulary = 300
[train]
steps = 2
batch = 2
[checkpoint]
every = 1
"""


def plait(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "plait", *arguments],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.toml").write_text(CONFIG)
    (folder / "a.txt").write_text("some words and more wörds\n" * 50, "utf-8")
    done = plait(folder, "train", "small.toml")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The run's folder alone, as on another machine."""
    return Path(shutil.copytree(trained / "runs" / "small", tmp_path / "moved"))


def test_generate_needs_the_run_alone(trained: Path, run: Path) -> None:
    here = plait(trained, "generate", "runs/small", "--prompt", "wö", "--tokens", "9")
    assert here.returncode == 0, here.stderr
    assert here.stdout.startswith("wö")
    for path in ("moved", "moved/checkpoints", "moved/checkpoints/step-00000002"):
        there = plait(run.parent, "generate", path, "--prompt", "wö", "--tokens", "9")
        assert (there.stdout, there.stderr) == (here.stdout, "")
    inside = plait(run / "checkpoints", "generate", "step-00000002", "--prompt", "wö")
    assert inside.returncode == 0, inside.stderr


@pytest.mark.parametrize("damage", ["missing", "cut", "bytes"])
def test_a_tokenizer_that_cannot_be_read_is_one_message(run: Path, damage: str) -> None:
    place = run / "tokenizer.json"
    content = place.read_bytes()
    place.unlink()
    if damage != "missing":
        place.write_bytes(content[:100] if damage == "cut" else b"\xff" + content)
    done = plait(run.parent, "generate", "moved")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "moved/tokenizer.json" in line
    assert "plait train" in line


def test_evaluate_refuses_other_data(trained: Path, run: Path) -> None:
    shutil.copy(trained / "a.txt", run.parent)
    for path in ("moved", "moved/checkpoints/step-00000001"):
        done = plait(run.parent, "evaluate", path)
        assert done.returncode == 0, done.stderr
        assert f"{path} at step {1 if '1' in path else 2}" in done.stdout
    (run.parent / "a.txt").write_text("other words and more of them\n" * 50)
    done = plait(run.parent, "evaluate", "moved")
    assert (done.returncode, done.stdout) == (2, "")
    assert "moved holds a run on other data: the content of data.path" in done.stderr


def test_an_older_checkpoint_is_not_taken_silently(run: Path) -> None:
    file = run / "checkpoints" / "step-00000002" / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for arguments in (
        ["generate", "moved"],
        ["checkpoint", "export", "moved", "out"],
        ["checkpoint", "inspect", "moved"],
    ):
        done = plait(run.parent, *arguments)
        assert done.returncode == 0, done.stderr
        assert "passing over step-00000002" in done.stderr
    done = plait(run.parent, "checkpoint", "verify", "moved")
    assert done.returncode == 2
    assert "passing over step-00000002" in done.stderr
    assert "step-00000001: whole" in done.stdout


def test_what_is_no_run_is_said(trained: Path, run: Path) -> None:
    (run / "config.toml").unlink()
    for path, message in (
        ("nowhere", "nowhere does not exist: give a run, or one of its checkpoints"),
        ("moved", "give runs/NAME or one of its checkpoints"),
    ):
        for command in ("evaluate", "generate"):
            done = plait(run.parent, command, path)
            assert done.returncode == 2
            assert message in done.stderr
