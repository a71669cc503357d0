"""MPICH's mpiexec leaves a file in /tmp for each job that is aborted: those of ours are removed."""

import os
import time
from pathlib import Path

_FOLDER, _PREFIX = Path("/tmp"), "hydra_hwloc_xmlfile_"  # as in hydra's own source
_PROXY = b"hydra_pmi_proxy"  # makes the file when the first rank starts MPI
_START_SECONDS = 10.0  # from a proxy's start to its ranks' MPI
_START_FIELD = 19  # of /proc/N/stat after the name


def hydra_files() -> set[Path]:
    """Such files of this user that are there now."""
    try:
        entries = list(os.scandir(_FOLDER))
    except OSError:
        return set()
    return {Path(e.path) for e in entries if e.name.startswith(_PREFIX) and _mine(Path(e.path))}


def remove_hydra_files(before: set[Path]) -> None:
    """Removes those that came after `before` was taken, but for what another job of this user, just
    started, may be about to read."""
    left = hydra_files() - before
    starts = _proxy_starts() if left else []
    for path in left:
        try:
            made = path.stat().st_mtime
        except FileNotFoundError:
            continue
        if not any(0 <= made - start + 1 <= _START_SECONDS for start in starts):
            path.unlink(missing_ok=True)


def _proxy_starts() -> list[float]:
    """When hydra's processes of this user were started, as time.time()."""
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _mine(entry):
            try:
                name = (entry / "cmdline").read_bytes().split(b"\0")[0]
                stat = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            if os.path.basename(name) == _PROXY and len(stat) > _START_FIELD:
                found.append(boot + int(stat[_START_FIELD]) / os.sysconf("SC_CLK_TCK"))
    return found


def _mine(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid()
    except OSError:
        return False
