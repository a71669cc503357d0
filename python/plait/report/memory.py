"""How much memory this process uses, and how much it may use."""

import ctypes
import re
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


def resident_bytes() -> int:
    """Memory of this process now; 0 where the system does not say."""
    return _kilobytes(PROC / "self" / "status", "VmRSS") * 1024


def peak_bytes() -> int:
    """The most this process has had so far; 0 where the system does not say."""
    return _kilobytes(PROC / "self" / "status", "VmHWM") * 1024


def reset_peak() -> None:
    """From here on peak_bytes counts anew, where the system can: making data ready is no
    training. What that freed goes back to the system first."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
    try:
        (PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return


def limit_bytes() -> int:
    """The memory this host, or the container or job around us, may use; 0 if unknown."""
    limits = [_kilobytes(PROC / "meminfo", "MemTotal") * 1024, *_cgroup_limits()]
    return min((limit for limit in limits if limit > 0), default=0)


def _cgroup_limits() -> list[int]:
    """Every limit on the way from our control group to the root, versions 1 and 2."""
    found = []
    for line in _lines(PROC / "self" / "cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = CGROUP / controllers
        name = "memory.max" if controllers == "" else "memory.limit_in_bytes"
        place = root / group.lstrip("/")
        for folder in (place, *place.parents):
            text = "".join(_lines(folder / name)).strip()
            if text.isdigit():
                found.append(int(text))
            if folder == root:
                break
    return found


def _kilobytes(path: Path, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", "\n".join(_lines(path)), re.MULTILINE)
    return int(match[1]) if match else 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
