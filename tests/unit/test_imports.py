"""The layers of docs/design.md: imports only go down; the C++ knows neither Python nor MPI."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "plait"

# Top to bottom; a layer may import the layers below it. Within a layer imports may go one way only.
LAYERS = [
    {"cli", "launch"},
    {"verify"},
    {"train", "plan"},
    {"report", "checkpoint"},
    {"models", "data", "parallel", "optim"},
    {"nn"},
    {"ops"},
    {"autograd", "mesh"},
    {"job"},
    {"comm"},
    {"backend"},
    {"_cpu", "_cuda", "errors"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything a file imports, inside functions too."""
    package = ("plait", *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def plait_imports() -> Iterator[tuple[str, str, str]]:
    """(importing package, imported package, where), by top-level names below plait."""
    for file in sorted(PACKAGE.rglob("*.py")):
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for line, name in imports(file):
            parts = name.split(".")
            if parts[0] != "plait" or own in ("__init__", "__main__"):
                continue
            where = f"{file.relative_to(ROOT)}:{line} imports {name}"
            if len(parts) > 1 and not parts[1].startswith("__") and parts[1] != own:
                yield own, parts[1], where


def test_every_module_has_a_layer() -> None:
    entries = {
        p.name.removesuffix(".py")
        for p in PACKAGE.iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    homeless = entries - set(LEVEL) - {"__init__", "__main__"}
    assert not homeless, f"give these a layer in docs/design.md and here: {sorted(homeless)}"


def test_imports_never_climb() -> None:
    top, bottom = -1, len(LAYERS)
    climbs = [
        where
        for own, other, where in plait_imports()
        if LEVEL.get(own, top) > LEVEL.get(other, bottom)
    ]
    assert not climbs, "\n".join(climbs)


def test_neighbours_import_one_way() -> None:
    edges = {(own, other): where for own, other, where in plait_imports()}
    both = [f"{edges[a, b]}\n{edges[b, a]}" for a, b in edges if (b, a) in edges and a < b]
    assert not both, "\n".join(both)


def test_autograd_imports_only_the_standard_library() -> None:
    files = [PACKAGE / "autograd.py", *(PACKAGE / "autograd").rglob("*.py")]
    foreign = [
        f"{file.name}:{line} imports {name}"
        for file in files
        if file.exists()
        for line, name in imports(file)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not name.startswith("plait.autograd")
    ]
    assert not foreign, "\n".join(foreign)


def test_everything_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["text"], *extras["images"]]
    names = {re.split(r"[<>=~]", text)[0] for text in declared} - {"pillow"} | {"PIL", "plait"}
    foreign = {
        name.split(".")[0]: f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in PACKAGE.rglob("*.py")
        for line, name in imports(file)
        if name.split(".")[0] not in sys.stdlib_module_names
    }
    undeclared = [where for name, where in foreign.items() if name not in names]
    assert not undeclared, "\n".join(undeclared)
    assert names == set(foreign), f"declared but not imported: {names - set(foreign)}"


SOURCES = {".cpp", ".hpp", ".cu", ".cuh"}
INCLUDES = {  # what each folder of csrc may include besides the C++ and C libraries
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "peer": {"core", "cpu", "cuda", "peer"},
    "cuda": {"core", "cuda"},
    "bindings": {"core", "cpu", "cuda", "peer", "bindings", "pybind11"},
}


@pytest.mark.parametrize("folder", INCLUDES)
def test_includes_of_the_cpp(folder: str) -> None:
    wrong = []
    files = [f for f in sorted((ROOT / "csrc" / folder).rglob("*")) if f.suffix in SOURCES]
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            found = re.match(r'\s*#\s*include\s*(["<])([^">]+)', line)
            if not found:
                continue
            head, slash, _ = found[2].partition("/")
            ours = found[1] == '"' or (slash and head not in {"sys", "linux", "asm"})
            if (ours and head not in INCLUDES[folder]) or head in {"mpi.h", "Python.h"}:
                wrong.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_the_cpp_knows_no_mpi() -> None:
    files = [f for f in (ROOT / "csrc").rglob("*") if f.is_file()]
    assert files
    knows = [str(f.relative_to(ROOT)) for f in files if re.search(r"\bMPI_|mpi\.h", f.read_text())]
    assert not knows


LIGHT = [m for m in ("autograd", "plan", "cli", "launch") if list(PACKAGE.glob(m + "*"))]


@pytest.mark.parametrize("module", ["plait", *(f"plait.{name}" for name in LIGHT)])
def test_import_starts_no_mpi(module: str) -> None:
    code = f"import {module}, sys; assert 'mpi4py.MPI' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
