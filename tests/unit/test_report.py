"""The run folder after kills and resumes; what the screen shows on a terminal and elsewhere."""

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_ranks import Ranks, run

from plait.errors import UserError
from plait.report import Progress, RunFolder, Screen, bytes_text, count_text, memory, time_text


def opened(path: Path, **options: Any) -> RunFolder:
    folder = RunFolder(path, Ranks(), **options)
    folder.open()
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_new_run(tmp_path: Path) -> None:
    folder = opened(tmp_path / "runs" / "one")
    assert (folder.previous_config, folder.moved_to) == (None, None)
    folder.write("config.toml", 'name = "one"\n')
    folder.event("start", layout="2x2x1")
    folder.metrics({"step": 0, "loss": np.float32(0.5), "lr": np.float64(1e-3), "n": np.int64(3)})
    folder.metrics({"step": 1, "loss": float("nan"), "validation": {"loss": np.inf}})
    folder.close()
    assert rows(folder.metrics_path) == [
        {"step": 0, "loss": 0.5, "lr": 1e-3, "n": 3},
        {"step": 1, "loss": None, "validation": {"loss": None}},
    ]
    (start,) = rows(folder.events_path)
    assert (start["event"], start["layout"], start["host"]) == (
        "start",
        "2x2x1",
        os.uname().nodename,
    )
    assert set(start["versions"]) >= {"plait", "python", "numpy"}
    folder = opened(folder.path)
    assert folder.previous_config == 'name = "one"\n'
    folder.close()


def test_a_resume_repeats_no_step(tmp_path: Path) -> None:
    folder = opened(tmp_path / "run")
    for step in range(7):
        folder.metrics({"step": step})
    folder.close()
    with folder.metrics_path.open("a") as file:
        file.write('{"step": 7, "lo')
    with folder.events_path.open("a") as file:
        file.write('{"event":"sa')
    folder = opened(tmp_path / "run")
    folder.resume(5)
    folder.metrics({"step": 5, "again": True})
    folder.event("resume", step=5)
    folder.close()
    assert [row["step"] for row in rows(folder.metrics_path)] == [0, 1, 2, 3, 4, 5]
    assert rows(folder.metrics_path)[-1]["again"]
    assert [row["event"] for row in rows(folder.events_path)] == ["resume"]
    before = folder.metrics_path.stat().st_ino
    folder = opened(tmp_path / "run")
    folder.resume(6)
    assert folder.metrics_path.stat().st_ino == before, "nothing to drop, nothing to rewrite"
    folder.resume(0)
    folder.close()
    assert folder.metrics_path.read_text() == ""


@pytest.mark.parametrize("cut", [0, 1, 4095, 4096, 4097, 9000])
def test_a_cut_off_line_of_any_length_is_trimmed(tmp_path: Path, cut: int) -> None:
    folder = opened(tmp_path / "run")
    folder.metrics({"step": 0})
    folder.close()
    whole = folder.metrics_path.read_bytes()
    folder.metrics_path.write_bytes(whole + b"x" * cut)
    opened(tmp_path / "run").close()
    assert folder.metrics_path.read_bytes() == whole
    folder.metrics_path.write_bytes(b"x" * cut)
    opened(tmp_path / "run").close()
    assert folder.metrics_path.read_bytes() == b""


def test_fresh_moves_the_old_one_aside(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = opened(tmp_path / "run")
        folder.write("config.toml", str(number))
        folder.close()
        folder = opened(tmp_path / "run", fresh=True)
        assert folder.moved_to == tmp_path / f"run.old-{number}"
        assert folder.previous_config is None
        assert (folder.moved_to / "config.toml").read_text() == str(number)
        folder.close()
    folder = opened(tmp_path / "new", fresh=True)
    assert folder.moved_to is None
    folder.close()


def test_looking_makes_and_moves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "run"
    folder = RunFolder(path, Ranks())
    folder.look()
    assert not path.parent.exists()
    folder.open()
    folder.write("config.toml", "1")
    folder.close()
    folder = RunFolder(path, Ranks(), fresh=True)
    folder.look()
    assert [p.name for p in path.parent.iterdir()] == ["run"]
    with pytest.raises(UserError, match="being written"):
        opened(path)
    folder.open()
    assert sorted(p.name for p in path.parent.iterdir()) == ["run", "run.old-1"]
    with pytest.raises(UserError, match="being written"):
        opened(path)
    folder.close()


def test_of_two_starts_that_found_nothing_one_goes_on(tmp_path: Path) -> None:
    first, second = (RunFolder(tmp_path / "run", Ranks()) for _ in range(2))
    first.look()
    second.look()
    first.open()
    with pytest.raises(UserError, match="being written"):
        second.open()
    first.write("config.toml", "1")
    first.close()
    with pytest.raises(UserError, match="has just made"):
        second.open()
    second.close()


def test_what_metrics_hold(tmp_path: Path) -> None:
    folder = opened(tmp_path / "run")
    folder.metrics({"step": 3, "loss": 1.0})
    folder.metrics({"step": 3, "validation_loss": 1.0})
    assert folder.holds(3, "validation_loss")
    assert not folder.holds(2, "validation_loss")
    assert folder.resume(3) == 2
    assert not folder.holds(3, "loss")
    folder.close()


def test_two_jobs_cannot_write_one_run(tmp_path: Path) -> None:
    folder = opened(tmp_path / "run")
    for fresh in (False, True):
        with pytest.raises(UserError, match="by this very process: close"):
            opened(tmp_path / "run", fresh=fresh)
    (tmp_path / "run" / ".lock").write_text("process 1 on far")
    with pytest.raises(UserError, match=r"by another job \(process 1 on far\)"):
        opened(tmp_path / "run")
    folder.close()
    opened(tmp_path / "run").close()


def test_what_the_disk_refuses_is_the_same_error_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, message in ((tmp_path / "file", "is a file"), (tmp_path / "file/run", "Not a dir")):
        results = run(2, lambda comm, path=path: RunFolder(path, comm).open())  # type: ignore[misc]
        assert all(isinstance(r, UserError) and message in str(r) for r in results), results


def test_only_rank_0_writes_but_any_rank_tells_its_fault(tmp_path: Path) -> None:
    def body(comm: Ranks) -> None:
        folder = RunFolder(tmp_path / "run", comm)
        folder.open()
        folder.write("config.toml", "")
        folder.metrics({"step": 0})
        folder.event("start")
        comm.barrier()
        if comm.rank == 2:
            folder.fault("it broke")
        comm.barrier()
        folder.close()

    assert run(3, body) == [None] * 3
    assert len(rows(tmp_path / "run" / "metrics.jsonl")) == 1
    _, fault = rows(tmp_path / "run" / "events.jsonl")
    assert (fault["event"], fault["rank"], fault["text"]) == ("fault", 2, "it broke")
    RunFolder(tmp_path / "nowhere", Ranks()).fault("too early")


def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    folder = opened(tmp_path / "run")
    folder._open[folder.metrics_path].close()
    folder._open[folder.metrics_path] = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: No space left"):
        folder.metrics({"step": 0})

    def full() -> None:
        raise OSError(28, "No space left")

    with pytest.raises(UserError, match=f"^{folder.path}: No space left"):
        folder.on_rank_0(full)
    (folder.path / ".tokenizer.json.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be written: No space left"):
        folder.write("tokenizer.json", "{}")
    folder.close()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def as_on_a_terminal(patch: pytest.MonkeyPatch, terminal: bool) -> None:
    """As `plait train --ranks` tells rank 0, whose output goes through mpiexec."""
    patch.delenv("TTY_COMPATIBLE", raising=False)
    patch.setenv("TERM", "xterm-256color")
    if terminal:
        patch.setenv("TTY_COMPATIBLE", "1")
        patch.setenv("COLUMNS", "90")


def shown(total: int, seconds: float, *, terminal: bool, done: int = 0) -> str:
    file, clock = io.StringIO(), Clock()
    with pytest.MonkeyPatch.context() as patch:
        as_on_a_terminal(patch, terminal)
        screen = Screen(file=file)
        assert screen.live == terminal
        screen.header({"MPI": "MPICH 5.0.2", "layout": "2x2x1 [red]"})
        with Progress(screen, total, done=done, clock=clock) as progress:
            for step in range(done + 1, total + 1):
                clock.now += seconds
                progress.step(step, loss=1 / step, rate=12345.6, memory_bytes=987_654_321)
                if step == 5:
                    progress.note("checkpoint [5]")
    return file.getvalue()


def test_plain_lines_are_few_and_whole() -> None:
    text = shown(3000, 0.5, terminal=False)
    lines = text.splitlines()
    assert lines[:2] == ["MPI     MPICH 5.0.2", "layout  2x2x1 [red]"]
    assert "\x1b" not in text
    assert "step 1/3000  loss 1.0000  12.3k tokens/s  988 MB  24:60 left" not in text
    assert "step 1/3000  loss 1.0000  12.3k tokens/s  988 MB  25:00 left" in lines
    assert "step 3000/3000  loss 0.0003  12.3k tokens/s  988 MB  0:00 left" in lines
    assert "checkpoint [5]" in lines
    assert 40 < len(lines) < 75


def test_a_slow_run_prints_every_step() -> None:
    assert sum("step" in line for line in shown(9, 60, terminal=False, done=4).splitlines()) == 5


def test_a_terminal_gets_a_bar() -> None:
    text = shown(20, 0.5, terminal=True)
    assert text.count("\n") == 4, "two lines of header, a note, and the bar that stays"
    assert re.search("\r\x1b\\[K━{9,10}┄{9,10}  step 10/20", text)
    assert max(len(part) for part in re.split("\r\x1b\\[K|\n", text)) < 90
    assert "step 20/20  loss 0.0500  12.3k tokens/s  988 MB  0:00 left" in text
    assert "checkpoint [5]" in text


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(active=False)
    screen.header({"a": 1})
    with Progress(screen, 3) as progress:
        progress.step(1, loss=1.0, rate=1.0, memory_bytes=1)
        progress.note("x")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.00k"),
        (999.4, "999"),
        (999.7, "1.00k"),
        (12345, "12.3k"),
        (99960, "100k"),
        (999_600, "1.00M"),
        (0.0, "0.00"),
        (1.5e9, "1.50G"),
        (3.25, "3.25"),
        (0.5, "0.50"),
    ],
)
def test_counts(count: float, text: str) -> None:
    assert count_text(count) == text


def test_bytes_and_times() -> None:
    assert [bytes_text(n) for n in (0, 999, 1234, 5e6, 1.5e12)] == [
        "0 B",
        "999 B",
        "1.23 KB",
        "5.00 MB",
        "1.50 TB",
    ]
    assert [time_text(s) for s in (0, 59.4, 65, 3599.6, 3725)] == [
        "0:00",
        "0:59",
        "1:05",
        "1:00:00",
        "1:02:05",
    ]


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < memory.resident_bytes() <= memory.peak_bytes()
    pieces = [bytes(1000) for _ in range(100_000)]  # 100 MB in small pieces, which malloc keeps
    before, kept = memory.resident_bytes(), pieces[-1]
    del pieces
    memory.reset_peak()
    assert memory.peak_bytes() < before - 80_000_000, len(kept)
    total = memory.limit_bytes()
    assert total > 0
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "cgroup")
    assert (memory.limit_bytes(), memory.peak_bytes()) == (0, 0)
    group = tmp_path / "cgroup" / "slurm" / "step"
    group.mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  1000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/slurm/step\n")
    (group / "memory.max").write_text("max\n")
    assert memory.limit_bytes() == 1024000
    (group.parent / "memory.max").write_text("5000\n")
    assert memory.limit_bytes() == 5000


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_that_is_gone_ends_nothing(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_terminal(monkeypatch, terminal)

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    screen, clock = Screen(file=io.StringIO()), Clock()
    with Progress(screen, 3, clock=clock) as progress:
        screen.file = Gone()
        for step in (1, 2, 3):
            clock.now += 60
            progress.step(step, loss=1.0, rate=1.0, memory_bytes=1)
        progress.note("still here")
    assert screen.file is None
