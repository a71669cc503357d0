"""The mesh's coordinates, and what it says about layouts and launchers that do not fit."""

from __future__ import annotations

import subprocess
import sys

import pytest

from plait.comm.alone import Alone
from plait.comm.launcher import Launched, launcher
from plait.job.world import silent_worlds
from plait.mesh import Coordinates, Layout, Mesh

LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PALS_NRANKS", "SLURM_STEP_NUM_TASKS")
SIGNS = ("PMIX_RANK", "PMI_RANK", "PMI_FD", "PALS_RANKID", "FLUX_TASK_RANK", "SLURM_STEP_ID")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHERS, *SIGNS, "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_tensor_ranks_are_neighbours_then_stages_then_replicas() -> None:
    layout = Layout(2, 3, 2)
    found = [layout.coordinates(rank) for rank in range(layout.ranks)]
    assert found[:4] == [
        Coordinates(0, 0, 0),
        Coordinates(0, 1, 0),
        Coordinates(0, 2, 0),
        Coordinates(0, 0, 1),
    ]
    assert found[6] == Coordinates(1, 0, 0)
    assert len(set(found)) == 12
    assert [layout.rank(at) for at in found] == list(range(12))
    assert str(layout) == "2x3x2"


def test_one_rank_needs_no_mpi() -> None:
    code = (
        "import sys, plait; m = plait.Mesh(grains={'data': 8, 'tensor': 2});"
        "assert 'mpi4py.MPI' not in sys.modules;"
        "print(m.world.size, m.data.leaves.count, m.tensor.leaves.count, m.pipeline.leaves.count)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "8", "2", "1"]


def test_importing_plait_loads_nothing() -> None:
    code = (
        "import sys, plait;"
        "print([m for m in ('mpi4py', 'mpi4py.MPI', 'numpy') if m in sys.modules]);"
        "plait.nonsense"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    assert "module 'plait' has no attribute 'nonsense'" in done.stderr


@pytest.mark.parametrize(
    ("layout", "size", "words"),
    [
        ((2, 2, 1), 1, "layout 2x2x1 needs 4 ranks, the world has 1: start 4"),
        ((2, 1, 1), 1, "data=1 fits"),
        ((1, 2, 1), 1, "tensor x pipeline = 2 does not divide 1"),
    ],
)
def test_a_layout_that_is_not_the_world(
    layout: tuple[int, int, int], size: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Mesh(*layout, comm=Alone())


def test_sizes_and_grains_are_checked_before_mpi() -> None:
    with pytest.raises(ValueError, match="layout: tensor must be a positive integer, got 0"):
        Mesh(tensor=0)
    with pytest.raises(ValueError, match=r"grains are positive integers .* 'data': 0"):
        Mesh(grains={"data": 0})
    with pytest.raises(ValueError, match="'batch': 4"):
        Mesh(grains={"batch": 4})
    with pytest.raises(ValueError, match=r"give grains=\{'data': 4, 'tensor': 4\}"):
        Mesh(data=2, tensor=4, grains={"data": 4, "tensor": 2})


def test_the_nearest_launcher_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launcher() == Launched(False)
    monkeypatch.setenv("SLURM_NTASKS", "8")  # a shell inside salloc: nothing was launched
    assert launcher() == Launched(False)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert launcher() == Launched(True, 4, "SLURM_STEP_NUM_TASKS", slurm=True)
    monkeypatch.setenv("PMI_SIZE", "2")  # an mpiexec inside the step
    assert launcher() == Launched(True, 2, "PMI_SIZE", slurm=True)


def test_worlds_of_one_are_told_apart_from_one_rank() -> None:
    assert silent_worlds(Launched(False), 1) is None
    assert silent_worlds(Launched(True, 1, "PMI_SIZE"), 1) is None
    assert silent_worlds(Launched(True, 4, "PMI_SIZE"), 4) is None
    said = silent_worlds(Launched(True, 4, "SLURM_STEP_NUM_TASKS", slurm=True), 1)
    assert said is not None
    assert "4 ranks were started (SLURM_STEP_NUM_TASKS=4)" in said
    assert "srun --mpi=pmi2" in said
    said = silent_worlds(Launched(True, 4, "PMI_SIZE"), 1)
    assert said is not None
    assert "mpiexec" in said
