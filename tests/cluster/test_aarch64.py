"""Every op on aarch64, cross-compiled and emulated: the bits that x86-64 gives."""

import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def test_aarch64_gives_the_bits_of_x86_64() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake, ninja
    done = subprocess.run(
        [ROOT / "tools" / "test-aarch64"],
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    contract = (ROOT / "csrc" / "core" / "ops.hpp").read_text()
    ops = set(re.findall(r"^(?:void|double|uint64_t) (\w+)\(", contract, re.M))
    assert len(ops) > 40
    lines = done.stdout.splitlines()
    assert {line.split()[0].rstrip(":") for line in lines} == ops, "every op is a case"
    assert all(re.search(": [0-9a-f]{16}$", line) for line in lines)
