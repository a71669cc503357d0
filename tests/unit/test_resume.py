"""Training goes on with the same config and the same data only, wherever the data lies."""

import os
import subprocess
import sys
from pathlib import Path

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


def train(folder: Path, *overrides: str) -> tuple[int, str]:
    """Exit code, and the last line of what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "plait", "train", "small.toml", *overrides],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()[-1]


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
