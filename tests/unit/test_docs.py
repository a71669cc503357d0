"""The code blocks of README and docs that are marked `run` are run, each in an empty folder.

The mark stands after the language of a fence: ```python run, ```python run ranks=2, ```sh run.
A block that needs what an earlier one of its page left says `run continue` and gets its folder.
One that takes minutes says `run long` and runs with --long only.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+) run\b([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LIMIT_SECONDS = {False: 120, True: 600}  # by `long`


@dataclass(frozen=True)
class Block:
    name: str
    language: str
    ranks: int
    follows: bool
    long: bool
    code: str


def blocks(page: Path) -> list[Block]:
    text, found = page.read_text(), []
    for match in FENCE.finditer(text):
        words = match[2].split()
        unknown = [w for w in words if not re.fullmatch(r"continue|long|ranks=\d+", w)]
        line = text.count("\n", 0, match.start()) + 1
        name = f"{page.relative_to(ROOT)}:{line}"
        assert not unknown, f"{name}: unknown marks {unknown}"
        ranks = next((int(w[6:]) for w in words if w.startswith("ranks=")), 0)
        marks = "continue" in words, "long" in words
        found.append(Block(name, match[1], ranks, *marks, match[3]))
    return found


def chains() -> list[list[Block]]:
    """Blocks that share a folder, in the order of the page; the first says whether it is long."""
    result: list[list[Block]] = []
    for page in PAGES:
        for number, block in enumerate(blocks(page)):
            if block.follows:
                assert number > 0, f"{block.name}: nothing to continue"
                result[-1].append(block)
            else:
                result.append([block])
    return result


def command(block: Block, folder: Path) -> list[str]:
    if block.language == "python":
        (folder / "block.py").write_text(block.code)
        start = ["mpiexec", "-n", str(block.ranks)] if block.ranks else []
        module = ["-m", "mpi4py"] if block.ranks else []
        return [*start, sys.executable, *module, "block.py"]
    assert block.language in {"sh", "bash"}, f"{block.name}: cannot run {block.language}"
    return ["bash", "-euc", block.code]


def cases() -> list[Any]:
    return [
        pytest.param(chain, id=chain[0].name, marks=[pytest.mark.long] if chain[0].long else [])
        for chain in chains()
    ]


@pytest.mark.parametrize("chain", cases())
def test_code_blocks_run(chain: list[Block], tmp_path: Path) -> None:
    # `plait` and `mpiexec` are those of the Python that runs the tests
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "plait").write_text(f'#!/bin/sh\nexec {sys.executable} -m plait.cli "$@"\n')
    (tools / "plait").chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    for block in chain:
        done = subprocess.run(
            command(block, folder),
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS[block.long],
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{block.name}\n{done.stdout}\n{done.stderr}"


def test_links_of_the_docs_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert not broken, "\n".join(broken)
