"""plait train on several ranks as a user starts it: what is printed, the exit code, what is left.

The trainer is a stand-in (stand_in/sitecustomize.py) that does what a config file says.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import _environment, _marked, _mpiexec

STAND_IN = Path(__file__).with_name("stand_in")
LIMIT = 60.0
PLAIT = [sys.executable, "-P", "-m", "plait"]


@dataclass
class Job:
    process: subprocess.Popen[str]
    folder: Path
    mark: str

    def wait_for(self, text: str, count: int) -> None:
        """Reads standard output until text came count times."""
        assert self.process.stdout is not None
        seen = ""
        while len(re.findall(text, seen)) < count:
            line = self.process.stdout.readline()
            assert line, f"ended before {count} times {text!r}: {seen}"
            seen += line

    def end(self) -> Done:
        """Waits; fails if a process or a file in /dev/shm is left."""
        try:
            out, err = self.process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            for pid in _marked(self.mark):
                os.kill(pid, signal.SIGKILL)
            pytest.fail(f"still there after {LIMIT} s: {self.process.args}")
        names = [n for f in self.folder.glob("shared.*") for n in f.read_text().splitlines()]
        assert not [name for name in names if os.path.exists(name)]
        _wait_until_gone(self.mark)
        return Done(self.process.returncode, out, err)


def _wait_until_gone(mark: str) -> None:
    """MPICH's mpiexec ends at an abort, its proxy after it has killed the ranks."""
    deadline = time.monotonic() + 10
    while left := _marked(mark):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.01)


@dataclass
class Done:
    code: int
    out: str
    err: str

    def said(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("plait: ")]


def job(
    tmp_path: Path,
    config: str,
    *arguments: str,
    launch: list[str] | None = None,
    command: list[str] | None = None,
) -> Job:
    (tmp_path / "config.toml").write_text(f"{config} shared={tmp_path}")
    mark = uuid.uuid4().hex
    environment = _environment(tmp_path, mark)
    for name in list(environment):
        if name.startswith(("OMPI_", "PRTE_")) and not launch:  # plait sets what Open MPI needs
            environment.pop(name)
    environment["PYTHONPATH"] = f"{STAND_IN}{os.pathsep}{environment['PYTHONPATH']}"
    process = subprocess.Popen(
        command or [*(launch or []), *PLAIT, "train", str(tmp_path / "config.toml"), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # as on a terminal, also where the tests run under nohup
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    return Job(process, tmp_path, mark)


def launcher(ranks: int) -> list[str]:
    return [_mpiexec(), "-n", str(ranks)]


def test_ranks_are_started_here(tmp_path: Path) -> None:
    done = job(tmp_path, "", "--ranks", "3", "--fresh").end()
    cores = len(os.sched_getaffinity(0))
    assert done == Done(0, f"done on 3 fresh=True threads={cores}\n", "")


def test_a_launcher_s_ranks_are_used(tmp_path: Path) -> None:
    done = job(tmp_path, "", "--ranks", "2", launch=launcher(2)).end()
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("done on 2 ")


def test_ranks_must_equal_the_launcher_s(tmp_path: Path) -> None:
    done = job(tmp_path, "", "--ranks", "3", launch=launcher(2)).end()
    assert (done.code, done.out) == (2, "")
    assert len(done.said()) == 1
    assert "--ranks 3, but the launcher started 2" in done.err


@pytest.mark.parametrize("what", ["raise", "raise-in-thread"])
def test_a_rank_that_raises_ends_all(tmp_path: Path, what: str) -> None:
    done = job(tmp_path, f"do={what} on=1", "--ranks", "3").end()
    assert done.code == 3
    host = re.escape(os.uname().nodename)
    assert len(re.findall(rf"\[rank 1 of 3 on host {host}\] Traceback", done.err)) == 1
    error = "RuntimeError: rank 1 has had enough" if what == "raise" else "ZeroDivisionError"
    assert error in done.err
    assert "click" not in done.err


def test_where_all_raise_one_traceback_is_shown(tmp_path: Path) -> None:
    done = job(tmp_path, "do=raise on=0,1,2", "--ranks", "3").end()
    assert done.code == 3
    assert done.err.count("Traceback") == 1


@pytest.mark.parametrize("on", ["0,1,2", "0", "1", "1,2"])
def test_a_user_error_is_told_once(tmp_path: Path, on: str) -> None:
    done = job(tmp_path, f"do=user-error on={on}", "--ranks", "3").end()
    assert done.code == 2
    assert len(done.said()) == 1
    assert "batch = 15 does not divide; batch = 16 does" in done.said()[0]
    assert "Traceback" not in done.err
    if on == "0,1,2":
        assert "MPI_Abort" not in done.err, "all left in order"


def test_a_bad_config_starts_nothing(tmp_path: Path) -> None:
    done = job(tmp_path, "", "unknown=1", "--ranks", "3").end()
    assert done == Done(2, "", "plait: unknown key 'unknown'; did you mean 'known'?\n")


def test_a_bad_config_under_a_launcher_is_told_once(tmp_path: Path) -> None:
    done = job(tmp_path, "", "unknown=1", launch=launcher(3)).end()
    assert done.code == 2
    assert done.said() == ["plait: unknown key 'unknown'; did you mean 'known'?"]


def script(tmp_path: Path, code: str, ranks: int) -> Done:
    """A program of the user's own: no `plait`, and no `-m mpi4py`."""
    file = tmp_path / "script.py"
    file.write_text(code)
    return job(tmp_path, "", command=[*launcher(ranks), sys.executable, str(file)]).end()


def test_a_script_s_rank_that_raises_ends_all(tmp_path: Path) -> None:
    code = (
        "import plait\nmesh = plait.Mesh(data=3)\n"
        "if mesh.world.rank == 1:\n    raise RuntimeError('rank 1 has had enough')\n"
        "mesh.world.barrier()\n"
    )
    done = script(tmp_path, code, 3)
    assert done.code == 3, done
    assert done.err.count("Traceback") == 1
    assert re.search(r"\[rank 1 of 3 on host \S+\] Traceback", done.err)
    assert "RuntimeError: rank 1 has had enough" in done.err


def test_a_script_s_mistake_is_told_once(tmp_path: Path) -> None:
    done = script(tmp_path, "import plait\nplait.Mesh(data=2)\n", 3)
    assert done.code == 2, done
    assert len(done.said()) == 1
    assert "needs 2 ranks, the world has 3" in done.said()[0]
    assert "Traceback" not in done.err


def test_a_killed_rank_ends_all(tmp_path: Path) -> None:
    done = job(tmp_path, "do=kill on=1", "--ranks", "3").end()
    assert done.code == 3
    assert any("SIGKILL" in line and "too little memory" in line for line in done.said())


def test_exit_code_75_is_passed_on(tmp_path: Path) -> None:
    assert job(tmp_path, "code=75", "--ranks", "2").end().code == 75


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_one_signal_stops_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    running = job(tmp_path, "do=steps", "--ranks", "2")
    running.wait_for("ready", 2)
    running.process.send_signal(number)
    done = running.end()
    assert done.code == 75, done
    assert done.out.count("saved") == 2
    assert [line.split(":")[1] for line in done.said()] == [f" {number.name}"]


def test_a_signal_while_the_ranks_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAY_STARTING", "1")
    running = job(tmp_path, "do=steps", "--ranks", "2")
    running.wait_for("starting", 1)
    running.process.send_signal(signal.SIGINT)
    done = running.end()
    assert (done.code, done.out.count("saved")) == (75, 2), done


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_reader_that_left_does_not_keep_a_run_from_saving(tmp_path: Path, ranks: int) -> None:
    """As `2>&1 | tee log`, where Ctrl-C ends tee first."""
    running = job(tmp_path, "do=steps", *(("--ranks", "2") if ranks == 2 else ()))
    running.wait_for("ready", ranks)
    for stream in (running.process.stdout, running.process.stderr):
        assert stream is not None
        stream.close()
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(LIMIT) == 75
    assert len(list(tmp_path.glob("saved.*"))) == ranks


def test_a_second_signal_does_not_hide_the_checkpoint(tmp_path: Path) -> None:
    """The launcher stands in: it is told to end when the ranks have just saved."""
    code = (
        "import os, signal, sys\n"
        "def end(*_):\n    open(os.environ['PLAIT_VERDICT'], 'w').write('75'); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    mpiexec = tmp_path / "mpiexec"
    mpiexec.write_text(f"#!{sys.executable}\n{code}")
    mpiexec.chmod(0o755)
    start = (
        "import sys; import plait.launch.spawn as s; s.REPEATED_SECONDS = 0\n"
        f"s.mpiexec = lambda: {str(mpiexec)!r}\nsys.exit(s.spawn([], 2))"
    )
    running = job(tmp_path, "", command=[sys.executable, "-c", start])
    running.wait_for("ready", 1)
    assert running.process.stderr is not None
    running.process.send_signal(signal.SIGINT)
    assert "stopping after this step" in running.process.stderr.readline()
    running.process.send_signal(signal.SIGINT)
    assert running.end().code == 75


def test_more_signals_end_a_deadlock(tmp_path: Path) -> None:
    running = job(tmp_path, "do=deadlock", "--ranks", "2")
    running.wait_for("ready", 2)
    for _ in range(int(LIMIT / 0.1)):
        running.process.send_signal(signal.SIGTERM)
        try:
            running.process.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            continue
    assert running.end().code == 3


def test_ranks_stop_where_the_starter_is_killed(tmp_path: Path) -> None:
    running = job(tmp_path, "do=steps", "--ranks", "2")
    running.wait_for("ready", 2)
    running.process.kill()
    done = running.end()  # the pipes close once the ranks have ended
    assert done.code == -signal.SIGKILL


def test_a_launcher_of_another_mpi_is_named(tmp_path: Path) -> None:
    """As srun with the wrong PMI: three processes, each a world of one."""
    code = (
        "import subprocess, sys, os\n"
        "e = {**os.environ, 'SLURM_STEP_NUM_TASKS': '3', 'SLURM_STEP_ID': '0'}\n"
        "start = lambda r: subprocess.Popen(sys.argv[1:], env={**e, 'SLURM_PROCID': str(r)})\n"
        "sys.exit(max(p.wait() for p in [start(r) for r in range(3)]))"
    )
    done = job(tmp_path, "", launch=[sys.executable, "-c", code]).end()
    assert (done.code, done.out) == (2, "")
    assert len(done.said()) == 1
    assert "3 ranks were started" in done.said()[0]
    assert "srun --mpi=" in done.said()[0]
