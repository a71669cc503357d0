"""The scripts of examples/ run as they stand, but for the number of steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import _environment, _mpiexec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIMIT = 300.0


def start(script: str, ranks: int, folder: Path) -> str:
    """Runs a script in an empty folder; 0 ranks: without a launcher."""
    (folder / "script.py").write_text(script)
    launcher = [_mpiexec(), "-n", str(ranks)] if ranks else []
    module = ["-m", "mpi4py"] if ranks else []
    done = subprocess.run(
        [*launcher, sys.executable, *module, "script.py"],
        cwd=folder,
        env={**_environment(folder, folder.name), "TMPDIR": os.environ.get("TMPDIR", "/tmp")},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("ranks", [0, 2])
def test_collectives(ranks: int, tmp_path: Path) -> None:
    checks = (
        "expected = comm.all_reduce(x[:9].astype(np.float64) @ w)\n"
        "assert np.allclose(y[:9], expected, rtol=1e-5), (y, expected)\n"
        "print('checked')\n"
    )
    script = (EXAMPLES / "collectives.py").read_text() + checks
    assert start(script, ranks, tmp_path).count("checked") == max(ranks, 1)


@pytest.mark.long
def test_train(tmp_path: Path) -> None:
    script = (EXAMPLES / "train.py").read_text()
    assert "steps(300)" in script
    out = start(script.replace("steps(300)", "steps(3)"), 4, tmp_path)
    assert re.search(r"^0 [89]\.\d+ ", out, re.MULTILINE), out
    assert [path.name for path in (tmp_path / "runs/mine/checkpoints").glob("step-*")] == [
        "step-00000003"
    ]
    assert len((tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines()) == 3
