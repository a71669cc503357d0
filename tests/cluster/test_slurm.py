"""plait under a real Slurm: both wheels' MPI on two and four nodes, and what a user sees when a
job goes wrong."""

import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MPICH, OPENMPI, ROOT, Cluster

PROGRAMS = Path(__file__).with_name("programs")
MPIS = {"mpich": ("pmi2", MPICH), "openmpi": ("pmix", OPENMPI)}
TRAIN = ("-m", "plait", "train", PROGRAMS / "tiny.toml")


@pytest.mark.parametrize("nodes", [2, 4])
@pytest.mark.parametrize("library", MPIS)
def test_all_reduce(cluster: Cluster, library: str, nodes: int) -> None:
    pmi, python = MPIS[library]
    program = [python, "-m", "mpi4py", PROGRAMS / "all_reduce.py", 2 * nodes]
    done = cluster.srun(nodes, pmi, *program)
    assert done.code == 0, str(done)
    hosts = " ".join(f"cn{k}" for k in range(1, nodes + 1))
    assert f"{2 * nodes} ranks on {hosts} by" in done.out, str(done)


def bits(run: Path) -> tuple[str, list[tuple[float, float]]]:
    """SHA-256 over all masters and moments of a run's newest checkpoint, in global order; loss and
    gradient norm of every step, which JSON keeps to the last bit."""
    from plait.checkpoint import Reader, find

    reader, digest = Reader(find(run)), hashlib.sha256()
    arrays = sorted(reader.manifest.arrays.values(), key=lambda a: (a.name, a.kind))
    assert len(arrays) > 50
    for array in arrays:
        digest.update(f"{array.name} {array.kind}".encode())
        digest.update(reader.read(array.name, array.kind, 0, array.size).tobytes())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(20))
    return digest.hexdigest(), [(row["loss"], row["grad_norm"]) for row in steps]


def test_training_is_the_same_on_any_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """One node, two, four, either MPI, every transport, and a run that one MPI on two nodes began
    and the other on four goes on with: the same losses, weights and moments, as bits."""

    def train(
        name: str, library: str, nodes: int, tasks: int, layout: str, transport: str, *more: str
    ) -> Path:
        pmi, python = MPIS[library]
        words = [python, *TRAIN, f"layout={layout}", f"runs_dir={tmp_path / name}", *more]
        done = cluster.srun(nodes, pmi, *words, tasks=tasks)
        assert done.code == 0, str(done)
        assert f"transport {transport}" in done.err, str(done)
        return tmp_path / name / "tiny"

    tensor = ("train.sequence_parallel=true", "train.recompute=layer", "threads=2")
    rest = ("train.microbatch=3", "train.schedule=gpipe", "layout.zero=1")
    runs = [
        train("one node", "mpich", 1, 2, "1x1x2", "node"),
        train("two nodes", "mpich", 2, 2, "2x2x1", "hierarchical", *tensor),
        train("four nodes", "mpich", 4, 1, "2x1x2", "mpi", *rest),
        train("one node, openmpi", "openmpi", 1, 2, "1x2x1", "node", *tensor),
        train("two nodes, openmpi", "openmpi", 2, 2, "1x2x2", "hierarchical", *tensor, *rest),
    ]
    train("resumed", "openmpi", 2, 2, "4x1x1", "hierarchical", "layout.zero=1", "train.steps=10")
    runs.append(train("resumed", "mpich", 4, 1, "1x2x2", "mpi", "train.microbatch=5"))
    first, *others = map(bits, runs)
    for run, other in zip(runs[1:], others, strict=True):
        assert other == first, run


def test_communication_over_a_slow_link_is_in_the_metrics(cluster: Cluster, tmp_path: Path) -> None:
    """Two nodes behind links of 1 Mbit/s: the step's gradients and weights alone are seconds of it,
    and computing is milliseconds."""
    pmi, python = MPIS["mpich"]
    words = [python, *TRAIN, "layout=2x1x1", f"runs_dir={tmp_path}", "train.steps=2"]
    try:
        shaped = cluster.call("net", "--bandwidth", "1mbit")
        assert shaped.code == 0, str(shaped)
        done = cluster.srun(2, pmi, *words, tasks=1)
    finally:
        cluster.call("net", "--bandwidth", "none")
    assert done.code == 0, str(done)
    rows = map(json.loads, (tmp_path / "tiny/metrics.jsonl").read_text().splitlines())
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 2
    for row in steps:
        assert 0.5 < row["exposed_communication_seconds"] < row["step_seconds"]


def test_verify_names_the_node(cluster: Cluster) -> None:
    """An op that is wrong on one node is named, with a rank of that node."""
    pmi, python = MPIS["mpich"]
    words = ["env", f"PYTHONPATH={PROGRAMS}", python, "-m", "plait", "verify"]
    words += [PROGRAMS / "tiny.toml", "model.kind=wrong:model"]
    done = cluster.srun(2, pmi, *words, "--layouts", "1x1x1,2x1x1,1x2x1,2x2x1", tasks=2)
    assert done.code == 2, str(done)
    assert done.out.count("the same bits") == 2, str(done)
    assert "OTHER BITS" in done.out.splitlines()[4], str(done)
    assert "in step 1: output of Scaled (wrong), sample 4" in done.out, str(done)
    lines = [line for line in done.out.splitlines() if line.startswith("    rank")]
    assert [line[:10] for line in lines] == ["    rank 2", "    rank 3"], str(done)
    assert all("on host cn2:" in line for line in lines), str(done)


@pytest.mark.parametrize("library", MPIS)
def test_a_script_that_raises_takes_the_job_down(
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


@pytest.mark.parametrize("library", MPIS)
def test_a_layer_that_raises_takes_the_job_down(
    cluster: Cluster, library: str, tmp_path: Path
) -> None:
    pmi, python = MPIS[library]
    words = ["env", f"PYTHONPATH={PROGRAMS}", python, *TRAIN, "layout=2x2x1"]
    words += ["model.kind=broken:model", f"runs_dir={tmp_path}"]
    done = cluster.srun(2, pmi, *words)
    assert done.code == 3, str(done)
    assert done.err.count("RuntimeError: this layer is broken") == 1, str(done)
    assert re.search(r"\[rank 1 of 4 on host cn\d\] Traceback", done.err), str(done)
    assert not cluster.processes()


@pytest.mark.parametrize(("library", "pmi"), [("mpich", "none"), ("openmpi", "pmi2")])
def test_the_wrong_pmi_is_named_once(
    cluster: Cluster, library: str, pmi: str, tmp_path: Path
) -> None:
    words = [MPIS[library][1], *TRAIN, "layout=2x2x1", f"runs_dir={tmp_path}"]
    done = cluster.srun(2, pmi, *words)
    assert done.code == 2, str(done)
    assert done.err.count("srun --mpi=pmi2") == 1, str(done)
    assert not list(tmp_path.iterdir())


def until(condition: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s\n{told()}"
        time.sleep(0.2)


def test_a_batch_job_stops_requeues_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """Signalled as before a time limit, it saves, requeues itself and ends with every step once."""
    steps, log = 300, tmp_path / "job.log"
    run = tmp_path / "runs" / "tiny"
    options = ["--parsable", "-N2", "--ntasks-per-node=2", "--time=10", f"--output={log}"]
    job = [ROOT / "slurm" / "train.sbatch", PROGRAMS / "tiny.toml", "layout=2x2x1"]
    job += [f"train.steps={steps}", f"runs_dir={tmp_path / 'runs'}"]
    cluster.env["PLAIT_VENV"] = str(MPICH.parent.parent)
    submitted = cluster.run("sbatch", *options, *job)
    assert submitted.code == 0, str(submitted)
    number = submitted.out.strip()

    def rows() -> list[int]:
        metrics = run / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return [row["step"] for row in map(json.loads, lines) if "loss" in row]

    def told() -> str:
        return log.read_text() if log.exists() else "no log"

    def waits() -> bool:
        return bool(cluster.run("squeue", "-h", "-j", number).out.strip())

    until(lambda: len(rows()) > 5 or not waits(), 120, told)
    cluster.run("scancel", "--signal=USR1", number)
    until(lambda: "requeued" in told() or not waits(), 60, told)
    stopped = len(rows())
    assert 5 < stopped < steps, told()
    until(lambda: not waits(), 400, told)
    state = cluster.run("scontrol", "show", "job", number).out
    assert "JobState=COMPLETED" in state, f"{state}\n{told()}"
    assert "Restarts=1" in state, state
    assert rows() == list(range(steps)), told()


def test_scripts_are_clean() -> None:
    shellcheck = shutil.which("shellcheck")
    assert shellcheck, "apt install shellcheck"
    scripts = [".ci/run", "slurm/train.sbatch", "tests/cluster/slurm-cluster"]
    scripts += ["tools/new-venv", "tools/test-aarch64"]
    done = subprocess.run(
        [shellcheck, "-S", "warning", *scripts], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
