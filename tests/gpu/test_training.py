"""Training on a GPU: the same bits at every microbatch and layout, ranks sharing the device."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("program.py")
LIMIT = 120


@functools.cache
def trained(layout: str, microbatch: int, precision: str = "bfloat16") -> dict[str, Any]:
    ranks = functools.reduce(lambda a, b: a * b, map(int, layout.split("x")))
    command = [sys.executable, str(PROGRAM), layout, str(microbatch), precision, "4"]
    if ranks > 1:
        from plait.launch.mpi import mpiexec

        command = [str(mpiexec()), "-n", str(ranks), command[0], "-m", "mpi4py", *command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("microbatch", [1, 2, 3, 8])
def test_microbatch_changes_no_bits(microbatch: int, precision: str) -> None:
    assert trained("1x1x1", microbatch, precision) == trained("1x1x1", 4, precision)


@pytest.mark.parametrize("layout", ["2x1x1", "1x2x1", "1x1x2", "2x2x1", "1x2x2"])
def test_layout_changes_no_bits(layout: str) -> None:
    """Several ranks on one device, through host memory."""
    assert trained(layout, 2) == trained("1x1x1", 4)


def test_again_gives_the_same_bits() -> None:
    first = trained("1x1x1", 4)
    trained.cache_clear()
    assert trained("1x1x1", 4) == first


def test_losses_are_the_cpu_s() -> None:
    """Within 1e-2: sums of bfloat16 products have another order."""
    text = PROGRAM.read_text()
    assert 'backend="cuda"' in text
    code = text.replace('backend="cuda"', 'backend="cpu"')
    done = subprocess.run(
        [sys.executable, "-", "1x1x1", "4", "bfloat16", "4"], input=code, capture_output=True,
        text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = json.loads(done.stdout.strip().splitlines()[-1])["losses"]
    assert trained("1x1x1", 4)["losses"] == pytest.approx(expected, abs=1e-2)
