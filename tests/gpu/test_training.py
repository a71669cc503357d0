"""Training with the CUDA kernels, on a GPU or on fibers: the same bits at every microbatch and
layout, ranks sharing the device, and the CPU's losses."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cuda

PROGRAM = Path(__file__).with_name("program.py")
LIMIT = 120
GPU = importlib.util.find_spec("plait._cuda") is not None


@functools.cache
def trained(
    layout: str, microbatch: int, precision: str = "bfloat16", model: str = "gpt", backend: str = ""
) -> dict[str, Any]:
    ranks = functools.reduce(lambda a, b: a * b, map(int, layout.split("x")))
    backend = backend or ("cuda" if GPU else "fibers")
    size = "large" if GPU else "small"
    command = [str(PROGRAM), backend, model, size, layout, str(microbatch), precision]
    if ranks > 1:
        from plait.launch.mpi import mpiexec

        command = [str(mpiexec()), "-n", str(ranks), sys.executable, "-m", "mpi4py", *command]
    else:
        command = [sys.executable, *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


@pytest.mark.parametrize(("model", "precision"), [("gpt", "bfloat16"), ("llama", "float32")])
def test_microbatch_changes_no_bits(model: str, precision: str) -> None:
    expected = trained("1x1x1", 4, precision, model)
    assert trained("1x1x1", 3, precision, model) == expected


@pytest.mark.parametrize("layout", ["2x1x1", "1x2x2", "2x2x1"])
def test_layout_changes_no_bits(layout: str) -> None:
    """Several ranks on one device, through host memory."""
    assert trained(layout, 2) == trained("1x1x1", 4)


@pytest.mark.parametrize(("model", "precision"), [("gpt", "bfloat16"), ("resnet", "float32")])
def test_losses_are_the_cpu_s(model: str, precision: str) -> None:
    """Sums of products have another order, and with them the last digits (which the first steps of
    AdamW, that divide gradients by their size, make larger)."""
    ours = trained("1x1x1", 4, precision, model)["losses"]
    theirs = trained("1x1x1", 4, precision, model, "cpu")["losses"]
    assert ours == pytest.approx(theirs, abs=1e-2 if precision == "bfloat16" else 1e-3)
