"""plait under a real Slurm: both wheels' MPI on two and four nodes, and what a user sees when a
job goes wrong."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import MPICH, OPENMPI, ROOT, Cluster

PROGRAMS = Path(__file__).with_name("programs")
MPIS = {"mpich": ("pmi2", MPICH), "openmpi": ("pmix", OPENMPI)}


@pytest.mark.parametrize("nodes", [2, 4])
@pytest.mark.parametrize("library", MPIS)
def test_all_reduce(cluster: Cluster, library: str, nodes: int) -> None:
    pmi, python = MPIS[library]
    program = [python, "-m", "mpi4py", PROGRAMS / "all_reduce.py", 2 * nodes]
    done = cluster.srun(nodes, pmi, *program)
    assert done.code == 0, str(done)
    hosts = " ".join(f"cn{k}" for k in range(1, nodes + 1))
    assert f"{2 * nodes} ranks on {hosts} by" in done.out, str(done)


@pytest.mark.parametrize("library", MPIS)
def test_a_rank_that_raises_takes_the_job_down(
    cluster: Cluster, library: str, tmp_path: Path
) -> None:
    pmi, python = MPIS[library]
    raised = tmp_path / "raised"
    done = cluster.srun(2, pmi, python, "-m", "mpi4py", PROGRAMS / "raise.py", 4, raised)
    seconds = time.time() - float(raised.read_text())
    assert done.code != 0, str(done)
    assert "rank 1 has had enough" in done.err, str(done)
    assert seconds < 5, f"{seconds:.1f} s\n{done}"
    assert not cluster.processes()


@pytest.mark.parametrize(("library", "pmi"), [("mpich", "none"), ("openmpi", "pmi2")])
def test_the_wrong_pmi_is_named(cluster: Cluster, library: str, pmi: str) -> None:
    program = [MPIS[library][1], "-m", "mpi4py", PROGRAMS / "all_reduce.py", 4]
    done = cluster.srun(2, pmi, *program)
    assert done.code != 0, str(done)
    assert "srun --mpi=" in done.err + done.out, str(done)


def test_scripts_are_clean() -> None:
    shellcheck = shutil.which("shellcheck")
    assert shellcheck, "apt install shellcheck"
    scripts = [".ci/run", "slurm/train.sbatch", "tests/cluster/slurm-cluster", "tools/new-venv"]
    done = subprocess.run(
        [shellcheck, "-S", "warning", *scripts], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
