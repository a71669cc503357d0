"""MPICH's mpiexec leaves a file in /tmp for each job that is aborted: those of ours are removed."""

import os
from pathlib import Path

_FOLDER, _PREFIX = Path("/tmp"), "hydra_hwloc_xmlfile_"  # as in hydra's own source
_PROXY = "hydra_pmi_proxy"


def hydra_files() -> set[Path]:
    """Such files of this user that are there now."""
    try:
        entries = list(os.scandir(_FOLDER))
    except OSError:
        return set()
    return {Path(e.path) for e in entries if e.name.startswith(_PREFIX) and _mine(Path(e.path))}


def remove_hydra_files(before: set[Path]) -> None:
    """Removes those that came after `before` was taken, unless another job of this user, whose they
    may be, is there."""
    left = hydra_files() - before
    if left and not _proxy_runs():
        for path in left:
            path.unlink(missing_ok=True)


def _proxy_runs() -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _mine(entry):
            try:
                name = (entry / "cmdline").read_bytes().split(b"\0")[0]
            except OSError:
                continue
            if os.path.basename(name) == _PROXY.encode():
                return True
    return False


def _mine(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid()
    except OSError:
        return False
