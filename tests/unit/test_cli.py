"""The command line in one process: options, messages, exit codes, checkpoint and doctor."""

import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_ranks import Ranks

from plait import checkpoint
from plait.cli import doctor
from plait.cli.commands import plait
from plait.job.world import World
from plait.launch.mpi import Library

OPTIONS = {
    "train": {"config", "overrides", "--ranks", "--dry-run", "--fresh", "--other-bits"},
    "evaluate": {"run", "--ranks"},
    "verify": {"config", "overrides", "--layouts", "--steps"},
    "generate": {"run", "--prompt", "--tokens", "--temperature", "--seed"},
    "doctor": set(),
    "checkpoint inspect": {"path"},
    "checkpoint verify": {"path"},
    "checkpoint export": {"path", "out"},
}


def run(*arguments: str, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "plait", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        stdin=subprocess.DEVNULL,
    )


def called(*arguments: str) -> Result:
    return CliRunner().invoke(plait, arguments, obj=World(), catch_exceptions=False)


def commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


def test_every_option_is_listed_here() -> None:
    """Adding one is a decision: few options."""
    found = {name: {p.opts[0] for p in command.params} for name, command in commands(plait).items()}
    assert found == OPTIONS


def test_help_loads_neither_numpy_nor_mpi() -> None:
    code = (
        "import sys; from plait.cli import main; main(['--help'])\n"
        "heavy = {'numpy', 'mpi4py', 'rich', 'msgspec', 'plait._cpu'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "checkpoint" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command 'bogus'; see `plait --help`"),
        (["train"], "Missing argument 'CONFIG'; see `plait train --help`"),
        (["train", "none.toml"], "'none.toml' does not exist"),
        (["train", "c.toml", "steps"], "'steps' is not of the form key=value"),
        (["train", "c.toml", "--ranks", "0"], "0 is not in the range x>=1"),
        (["train", "c.toml", "--frehs"], "No such option"),
        (["generate", "r", "--temperature", "nan"], "--temperature nan must be 0"),
        (["generate", "r", "--temperature", "inf"], "--temperature inf must be 0"),
        (["generate", "r", "--temperature", "-1"], "--temperature -1 must be 0"),
        (["generate", "r", "--temperature", "1e-320"], "or a number from 1e-06 on"),
        (["generate", "r", "--seed", "-1"], "'--seed': -1 is not in the range x>=0"),
        (["generate", "r", "--prompt", "\udcff"], "--prompt '\\udcff' is not text"),
        (["checkpoint", "inspect", "nowhere"], "nowhere does not exist: give a run"),
        (["checkpoint", "export", "nowhere", "x"], "nowhere does not exist"),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "c.toml").write_text("")
    done = run(*arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("plait: ")
    assert message in done.stderr


def test_without_a_command_there_is_help_and_code_2() -> None:
    done = run()
    assert done.returncode == 2
    assert "Commands:" in done.stderr


def test_a_prompt_in_utf_8_in_a_locale_of_ascii() -> None:
    from plait.cli.commands import _text

    assert _text("--prompt", "é") == "é"
    if sys.getfilesystemencoding() == "utf-8":
        assert _text("--prompt", "\udcc3\udca9") == "é"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    pieces = [
        checkpoint.Piece("blocks.0.weight", "master", (2, 3), 0, np.arange(6, dtype="f4")),
        checkpoint.Piece("blocks.0.weight", "first", (2, 3), 0, np.arange(6, dtype="f4")),
    ]
    folder = tmp_path / "runs" / "one" / "checkpoints"
    checkpoint.save(folder, 7, pieces, Ranks(), metadata={"layout": "1x1x1"}, keep=1)
    return tmp_path / "runs" / "one"


def test_inspect(saved: Path) -> None:
    for path in (saved, saved / "checkpoints", saved / "checkpoints" / "step-00000007"):
        done = called("checkpoint", "inspect", str(path))
        lines = done.output.splitlines()
        assert "step        7" in lines
        assert "parameters  6 (6)" in lines
        assert 'metadata    {"layout": "1x1x1"}' in lines
        (row,) = (line.split() for line in lines if line.startswith("blocks.0.weight"))
        assert row == [
            "blocks.0.weight",
            "2",
            "x",
            "3",
            "float32",
            "first,",
            "master",
            "2",
            "48",
            "B",
        ]


def test_verify_tells_by_its_code(saved: Path) -> None:
    done = run("checkpoint", "verify", str(saved))
    assert (done.returncode, done.stderr) == (0, "")
    assert "whole; step 7, 1 files, 2 pieces, 48 B read" in done.stdout
    file = next((saved / "checkpoints" / "step-00000007").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = run("checkpoint", "verify", str(saved))
    assert done.returncode == 2
    assert f"{file.name} is damaged" in done.stderr
    assert "1 damaged or missing" in done.stdout


def test_export(saved: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    out = tmp_path / "out.safetensors"
    assert "out.safetensors" in called("checkpoint", "export", str(saved), str(out)).output
    assert np.array_equal(load_file(out)["blocks.0.weight"], np.arange(6).reshape(2, 3))
    done = run("checkpoint", "export", str(saved), str(out))
    assert done.returncode == 2
    assert "exists" in done.stderr


def script(path: Path, text: str) -> list[str]:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return [str(path)]


@pytest.mark.parametrize(
    ("text", "state", "said"),
    [
        ("echo 2 3.0 mpi", "ok", "all_reduce is right"),
        ("echo 1 1.0 alone; echo 1 1.0 alone", "error", "does not belong to MPICH 5"),
        ("echo no such host; exit 1", "error", "no such host"),
        ("echo 2 2.0 mpi", "error", "2 2.0 mpi"),
        ("exec sleep 60", "error", "did not find each other in 0.2 s"),
    ],
)
def test_two_ranks(tmp_path: Path, text: str, state: str, said: str) -> None:
    library = Library("MPICH 5", "MPICH", None, "4.1")
    found = doctor.two_ranks(
        script(tmp_path / "mpiexec", text), library, 0.2 if "sleep" in text else 60
    )
    assert found.state == state
    assert said in found.text


LISTS = {
    "pmi2": "MPI plugin types are...\n\tcray_shasta\n\tnone\n\tpmi2\n",
    "both": "MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions "
    "available: pmix_v4,pmix_v5\n",
    "versions": "\tnone\n\tpmix_v3\n",
    "none": "\tnone\n",
}


@pytest.mark.parametrize(
    ("listed", "kind", "state", "said"),
    [
        ("pmi2", "MPICH", "ok", "--mpi=pmi2 "),
        ("both", "MPICH", "ok", "--mpi=pmi2 "),
        ("both", "Open MPI", "ok", "--mpi=pmix "),
        ("versions", "Open MPI", "ok", "--mpi=pmix_v3 "),
        ("versions", "MPICH", "warning", "MPICH needs --mpi=pmi2, this Slurm has pmix_v3"),
        ("none", "Intel", "warning", "needs --mpi=pmi2 or pmix, this Slurm has none"),
        ("pmi2", "Open MPI", "warning", "Open MPI needs --mpi=pmix"),
    ],
)
def test_slurm_types(listed: str, kind: str, state: str, said: str) -> None:
    found = doctor.slurm_types(LISTS[listed], kind)
    assert found.state == state
    assert said in found.text + " "


def test_doctor_looks_at_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "two_ranks", lambda *_: doctor.Finding("ok", "two ranks", "asked"))
    done = called("doctor")
    for what in ("python", "engine", "MPI", "mpiexec", "two ranks", "cores", "memory", "/dev/shm"):
        assert f" {what} " in done.output
    assert not list((tmp_path / "cache" / "plait").iterdir())

    def broken() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(doctor, "_memory", broken)
    monkeypatch.setattr(doctor, "_quota", lambda: 0.5)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    output = CliRunner().invoke(plait, ["doctor"], obj=World()).output
    assert "warning  cores" in output
    assert "ranks x threads is at most 1" in output
    assert "cannot be written (Not a directory)" in output
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "_python", broken)
        assert doctor.examine() == 2


def test_ranks_in_a_world_that_is_there(tmp_path: Path) -> None:
    from plait.cli.commands import _must_spawn
    from plait.errors import UserError

    assert not _must_spawn(World(), None)
    assert not _must_spawn(World(), 1)
    assert _must_spawn(World(), 2)
    assert not _must_spawn(World(0, 4), 4)
    with pytest.raises(UserError, match="--ranks 3, but the launcher started 4"):
        _must_spawn(World(0, 4), 3)


def test_an_exception_ends_with_3_a_user_error_with_2() -> None:
    for raised, code, said in (
        ("RuntimeError('broke')", 3, "[rank 0 of 1 on host"),
        ("plait.errors.UserError('wrong')", 2, "plait: wrong"),
        ("KeyboardInterrupt()", 3, "interrupted"),
        ("ValueError('inside')", 3, "Traceback"),
    ):
        text = (
            "import plait.errors\nfrom plait.job.hook import install_abort_hook\n"
            "from plait.job.world import World\ninstall_abort_hook(World())\n"
            f"print('before')\nraise {raised}"
        )
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (code, "before\n")
        assert said in done.stderr
        assert ("Traceback" in done.stderr) == (code == 3 and said != "interrupted")


def test_the_current_folder_is_for_models_of_the_users_own() -> None:
    code = "import sys, os; from plait.cli import main; main(['--version']); print(sys.path[-1])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == os.getcwd()
