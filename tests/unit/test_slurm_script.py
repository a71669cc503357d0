"""slurm/train.sbatch with an srun that says what it was asked for."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "train.sbatch"


@pytest.mark.parametrize(
    ("restarts", "asked"),
    [
        (None, "<c.toml> <--fresh> <name=a b>"),
        ("0", "<c.toml> <--fresh> <name=a b>"),
        ("1", "<c.toml> <name=a b>"),
    ],
)
def test_a_requeued_job_does_not_start_afresh(
    tmp_path: Path, restarts: str | None, asked: str
) -> None:
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/bash\nshift 4\nprintf '<%s> ' \"$@\"\nexit 3\n")
    srun.chmod(0o755)
    known = {name: value for name, value in os.environ.items() if name != "SLURM_RESTART_COUNT"}
    done = subprocess.run(
        ["bash", SCRIPT, "c.toml", "--fresh", "name=a b"],
        cwd=tmp_path,
        env={
            **known,
            "PATH": f"{tmp_path}:{known['PATH']}",
            "PLAIT_VENV": "none",
            **({"SLURM_RESTART_COUNT": restarts} if restarts else {}),
        },
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (3, asked, "")
