"""Benchmarks of a GPU run to their end on fibers, small: on a GPU their minutes are dear."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import kernel_backends
import pytest
from fake_device import device

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ["--model", "tiny", "--batch", "4", "--microbatch", "2", "--curve", "--no-torch"]


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("name", "options", "figure"),
    [
        ("gpu_collectives", ["--small"], "updates"),
        ("gpu_products", ["--small"], "rows"),
        ("gpu_train", TINY, "curve"),
    ],
)
def test_run_on_fibers(
    name: str, options: list[str], figure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [name, "--rounds", "2", "--json", str(out), *options])
    monkeypatch.syspath_prepend(BENCHMARKS)
    with device(kernel_backends.fibers()):
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    assert json.loads(out.read_text())[figure]
