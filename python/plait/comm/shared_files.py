"""MPI's files in /dev/shm: a rank that is killed must leave none behind.

MPICH maps one file per node in MPI_Init and removes its name at the end only. Its name can go once
all ranks have it mapped: the memory then lives as long as its last process, however that ends.
"""

import os
from pathlib import Path

SHARED = Path("/dev/shm")
_FORGETTABLE = ("mpich_shm_",)  # opened once, in MPI_Init
_ALL = ("mpich_shm_", "mpich_shar_tmp", "vader_segment.", "sm_segment.", "osc_rdma.")


def forget_names() -> None:
    """Removes the names of MPI's files that this process maps; after a barrier of the world."""
    for path in _mapped(os.getpid()):
        if path.name.startswith(_FORGETTABLE):
            path.unlink(missing_ok=True)


def files() -> set[Path]:
    """MPI's files of this user that are there now."""
    if not SHARED.is_dir():
        return set()
    return {path for path in SHARED.iterdir() if path.name.startswith(_ALL) and _mine(path)}


def remove_left(before: set[Path]) -> None:
    """Removes those that came after `before` was taken and that no process maps any more."""
    left = files() - before
    if left:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                left -= _mapped(int(entry.name))
    for path in left:
        path.unlink(missing_ok=True)


def _mapped(process: int) -> set[Path]:
    try:
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    except OSError:
        return set()
    parts = (line.split(maxsplit=5) for line in lines if str(SHARED) in line)
    return {Path(part[5]) for part in parts if len(part) > 5}


def _mine(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid()
    except OSError:
        return False
