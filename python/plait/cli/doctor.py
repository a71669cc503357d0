"""plait doctor: what this Python, MPI and machine are, what is wrong with them, and the mend."""

import importlib
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

import plait
from plait.comm.launcher import launcher
from plait.comm.shared_files import files, remove_left
from plait.errors import UserError
from plait.launch import mpi
from plait.launch.spawn import environment
from plait.report.memory import limit_bytes
from plait.report.text import bytes_text

_RANKS_SECONDS, _SRUN_SECONDS = 60, 10
_SHARED = Path("/dev/shm")
_ENOUGH_SHARED = 256 << 20
_EXTRAS = {"tokenizers": ("text", "text data"), "PIL": ("images", "folders of images")}
_PMI = {"MPICH": ("pmi2",), "Intel": ("pmi2", "pmix"), "Open MPI": ("pmix",)}
_TWO_RANKS = """
import numpy as np
from plait.comm.choose import communicator
from plait.job.world import mpi_world
comm = communicator(mpi_world())
total = comm.all_reduce(np.full(1000, comm.rank + 1, np.float32))
if comm.rank == 0:
    print(comm.size, float(total.max()), comm.transport)
"""


@dataclass(frozen=True)
class Finding:
    """One line. A warning costs speed or a feature; with an error no training can start."""

    state: Literal["ok", "warning", "error"]
    what: str
    text: str
    mend: str = ""


def examine() -> int:
    """Prints every finding as it comes; returns 2 if one is an error, else 0."""
    failed = False
    for check in (_python, _engine, _gpu, _mpi, _cores, _memory, _shared, _slurm, _extras, _cache):
        try:
            findings = list(check())
        except Exception as error:  # a check that fails is a finding, and the others go on
            what = check.__name__.strip("_")
            findings = [Finding("error", what, f"{type(error).__name__}: {error}")]
        for found in findings:
            color = {"ok": "green", "warning": "yellow", "error": "red"}[found.state]
            state = click.style(f"{found.state:<8}", fg=color)
            click.echo(f"{state} {found.what:<14} {found.text}")
            if found.mend:
                click.echo(f"{'':<24}mend: {found.mend}")
            failed |= found.state == "error"
    return 2 if failed else 0


def _python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("ok", "plait", f"{plait.__version__} ({Path(plait.__file__).parent})")


def _engine() -> Iterator[Finding]:
    try:
        cpu = importlib.import_module("plait._cpu")
    except ImportError as error:
        mend = "install plait again: pip install --force-reinstall --no-deps plait"
        yield Finding("error", "engine", f"the compiled part does not load: {error}", mend)
        return
    text = f"instruction path {cpu.isa()} on {platform.machine()}"
    if cpu.isa() == "portable" and platform.machine() == "x86_64":
        yield Finding("warning", "engine", text, "this processor has no AVX2: training is slow")
    else:
        yield Finding("ok", "engine", text)


def _gpu() -> Iterator[Finding]:
    from plait import backend  # numpy

    if not backend.built():
        yield Finding("ok", "GPU", "this plait was built for the CPU only")
        return
    try:
        yield Finding("ok", "GPU", backend.use("cuda"))
    except UserError as error:
        yield Finding("warning", "GPU", str(error))
    finally:
        backend.use("cpu")


def _mpi() -> Iterator[Finding]:
    try:
        library = mpi.library()
    except (UserError, subprocess.TimeoutExpired) as error:
        yield Finding("error", "MPI", str(error))
        return
    where = f" ({library.path})" if library.path else ""
    yield Finding("ok", "MPI", f"{library.version}{where}, mpi4py {library.mpi4py}")
    try:
        program = mpi.mpiexec()
    except UserError as error:
        yield Finding("error", "mpiexec", str(error))
        return
    yield Finding("ok", "mpiexec", str(program))
    if launcher().launched:
        yield Finding("ok", "two ranks", "not tried: this is a rank already")
    else:
        yield two_ranks([str(program)], library, _RANKS_SECONDS)


def two_ranks(launch: list[str], library: mpi.Library, seconds: float) -> Finding:
    """Whether two ranks find each other and add 1 and 2."""
    command = [*launch, "-n", "2", sys.executable, "-P", "-c", _TWO_RANKS]
    begin, before = time.monotonic(), files()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment(2),
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Finding(
            "error",
            "two ranks",
            f"did not find each other in {seconds:g} s",
            "a host name that does not resolve, or a firewall: try `mpiexec -n 2 hostname`",
        )
    finally:
        remove_left(before)
    words = output.split()
    if process.returncode == 0 and words[:2] == ["2", "3.0"]:
        passed = f"all_reduce is right, started and done in {time.monotonic() - begin:.1f} s"
        return Finding("ok", "two ranks", passed)
    if words[:1] == ["1"]:
        return Finding(
            "error",
            "two ranks",
            f"{launch[0]} starts worlds of one rank: it does not belong to {library.version}",
            "use the mpiexec of that MPI, or one MPI only: pip uninstall the other",
        )
    tail = " | ".join(output.strip().splitlines()[-3:])
    return Finding("error", "two ranks", f"{' '.join(command[:3])} failed: {tail}")


def _cores() -> Iterator[Finding]:
    allowed, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = _quota()
    text = f"{allowed} of {there} may be used"
    if quota is not None and quota < allowed - 0.01:
        yield Finding(
            "warning",
            "cores",
            f"{text}, but this container gets the time of {quota:g}",
            f"set threads so that ranks x threads is at most {max(1, int(quota))}",
        )
    else:
        yield Finding("ok", "cores", text)


def _quota() -> float | None:
    """The processors whose time a control group of version 2 may use."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text("utf-8").split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)


def _memory() -> Iterator[Finding]:
    limit = limit_bytes()
    yield Finding("ok", "memory", bytes_text(limit) if limit else "its size is not known")


def _shared() -> Iterator[Finding]:
    if not _SHARED.is_dir():
        yield Finding("warning", "/dev/shm", "is not there", "MPI may need it: mount a tmpfs there")
        return
    usage = shutil.disk_usage(_SHARED)
    text = f"{bytes_text(usage.free)} free of {bytes_text(usage.total)}"
    if usage.free < _ENOUGH_SHARED:
        mend = "start the container with --shm-size=1g (docker, podman), or empty it"
        yield Finding("warning", "/dev/shm", text, mend)
    else:
        yield Finding("ok", "/dev/shm", text)


def _slurm() -> Iterator[Finding]:
    srun = shutil.which("srun")
    if srun is None:
        yield Finding("ok", "Slurm", "no srun here")
        return
    try:
        done = subprocess.run(
            [srun, "--mpi=list"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SRUN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding("warning", "Slurm", f"{srun} --mpi=list gave no answer")
        return
    if done.returncode != 0:
        text = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Finding("warning", "Slurm", f"{srun} does not work here: {text}")
        return
    yield slurm_types(done.stdout + done.stderr, mpi.library().kind)


def slurm_types(listed: str, kind: str) -> Finding:
    """Which --mpi fits the loaded MPI, of those that `srun --mpi=list` names."""
    words = {word.strip(",:") for word in listed.split()}
    types = sorted(w for w in words if w.startswith(("pmi", "cray")))
    wanted = _PMI.get(kind, ("pmi2", "pmix"))
    fits = [t for t in types if t.startswith(wanted)]
    if fits:
        best = next((t for t in fits if t in wanted), fits[0])
        return Finding("ok", "Slurm", f"start with srun --mpi={best} (here: {', '.join(types)})")
    other = "openmpi" if kind != "Open MPI" else "mpich"
    return Finding(
        "warning",
        "Slurm",
        f"{kind} needs --mpi={' or '.join(wanted)}, this Slurm has {', '.join(types) or 'none'}",
        f"start ranks with mpiexec inside sbatch or salloc, or use the other wheel: pip uninstall "
        f"the MPI wheel, pip install 'plait[{other}]'",
    )


def _extras() -> Iterator[Finding]:
    for module, (extra, use) in _EXTRAS.items():
        if importlib.util.find_spec(module) is not None:
            yield Finding("ok", f"[{extra}]", f"{module} is installed")
        else:
            mend = f"pip install 'plait[{extra}]'"
            yield Finding("warning", f"[{extra}]", f"no {module}: {use} cannot be read", mend)


def _cache() -> Iterator[Finding]:
    from plait.data.cache import cache_folder

    folder = cache_folder()
    if folder is None:
        mend = "set XDG_CACHE_HOME to a folder that can be written"
        yield Finding("warning", "cache", "this user has no home", mend)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        yield Finding(
            "warning",
            "cache",
            f"{folder} cannot be written ({error.strerror}): data is prepared again in every run",
            "set XDG_CACHE_HOME to a folder that can",
        )
        return
    free = shutil.disk_usage(folder).free
    yield Finding("ok", "cache", f"{folder} ({bytes_text(free)} free)")
