"""Rules 12 to 18 of docs/numerics.md on one rank: norm, loss, schedules, randomness; and what the
program's text and its compiled module may not contain."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import gpt, gpt_batch, one_rank

from plait import _cpu, data, models, optim, train
from plait.backend import PRECISIONS, Array, float32, kernels
from plait.comm import Leaves
from plait.comm.alone import Alone
from plait.mesh import Mesh
from plait.nn import Build
from plait.optim import AdamW
from plait.parallel.bucket import Bucket
from plait.parallel.schedule import Action, validate
from plait.train.digest import state_digest
from plait.train.engine import Engine, Settings

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, CSRC = ROOT / "python" / "plait", ROOT / "csrc"
GRAINS = {"data": 4, "tensor": 2}
BATCH = 8
every_precision = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.mark.parametrize("zero", [0, 1])
def test_rule_12_the_norm_has_no_order_and_no_cut(zero: int) -> None:
    """Any number of data ranks, with or without ZeRO, adds the same chunks, in any order."""
    build = Build(Alone().with_leaves(Leaves.even(3, 1)))
    shapes = [(7, 331), (3, 5), (9, 1024), (40, 77)]
    parameters = [build.split(f"p{i}", shape) for i, shape in enumerate(shapes)]
    bucket = Bucket(parameters, Alone(), build.comm, 1, float32, zero)
    random = np.random.default_rng(0)
    x = np.zeros(bucket.size, float32)
    for _, start, stop in bucket.slices:
        sizes = 10.0 ** random.uniform(-6, 6, stop - start)
        x[start:stop] = random.standard_normal(stop - start) * sizes

    def limbs_of(size: int) -> Array:
        limbs, bounds = np.zeros(kernels.LIMBS, np.int64), bucket._cut(size)
        for rank in random.permutation(size):
            bucket.cut = slice(bounds[rank], bounds[rank + 1])
            for where in bucket.chunks():
                kernels.exact_sum(x[where], True, limbs)
        return limbs

    expected = limbs_of(1)
    assert kernels.exact_value(expected) > 0
    for size in (2, 3, 4, 7, 16):
        np.testing.assert_array_equal(limbs_of(size), expected)


@every_precision
@pytest.mark.parametrize("microbatch", [1, 3, 8])
def test_rule_13_losses_are_scaled_by_the_unmasked_of_the_whole_batch(
    microbatch: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, targets = gpt_batch(BATCH)
    targets[4:7] = -1  # microbatches without any target
    settings = Settings(batch=BATCH, microbatch=microbatch, precision=precision)
    engine = Engine(gpt(layers=1), one_rank(GRAINS), AdamW(), settings)
    train, scales = engine.stage.train, []

    def spy(*arguments: Any) -> list[Array]:
        scales.append(arguments[4])
        return train(*arguments)

    monkeypatch.setattr(engine.stage, "train", spy)
    result = engine.step(0, 1e-3, inputs, targets)
    assert result.targets == np.count_nonzero(targets >= 0)
    assert scales == [np.float32(1 / result.targets)]


@pytest.mark.parametrize("wrong", [
    "", "f0 b0", "f0 f1 b0", "f0 f1 b1 b0", "f1 f0 b0 b1", "f0 b0 f1 b1 b1", "f0 f0 f1 b0 b1",
    "b0 f0 f1 b1", "f0 f1 f2 b0 b1 b2", "f0 b0 b1 f1", "f0 f1 b0 b0",
])  # fmt: skip
def test_rule_14_the_validator_refuses(wrong: str) -> None:
    kinds: dict[str, Any] = {"f": "forward", "b": "backward"}
    with pytest.raises(ValueError, match=r"run in order|before forward"):
        validate(tuple(Action(kinds[a[0]], int(a[1])) for a in wrong.split()), 2)


@every_precision
def test_rule_18_initial_weights_follow_seed_name_and_global_index(precision: str) -> None:
    """Whatever else lies in the bucket, and however its rows are stored."""

    def initial(grains: int, seed: int = 1, **settings: Any) -> str:
        mesh = one_rank({"data": 2, "tensor": grains})
        known = Settings(batch=4, microbatch=1, precision=precision, seed=seed)
        return state_digest(Engine(gpt(layers=2), mesh, AdamW(), known, **settings))

    expected = initial(1)
    for grains in (2, 4, 8):
        assert initial(grains) == expected
        assert initial(grains, bucket_size=1000) == expected
    assert initial(1, seed=2) != expected


# --- the text of the program ---


def nodes(*places: str) -> Iterator[tuple[str, ast.AST]]:
    for place in places:
        folder = PACKAGE / place
        for file in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]:
            for node in ast.walk(ast.parse(file.read_text())):
                yield file.relative_to(PACKAGE).as_posix(), node


MPI_ADDS = re.compile(
    r"I?(all)?reduce(_scatter(_block)?)?(_init)?|I?(ex)?scan|(Get_|Rget_|R)?accumulate|Fetch_and_op",
    re.IGNORECASE,
)
OWN = {"all_reduce", "reduce_scatter"}


def test_rule_15_no_reduction_of_a_library_adds_floats() -> None:
    """Two places call one, with types from tables that have integers only."""
    calls = {
        (file, node.attr)
        for file, node in nodes(".")
        if isinstance(node, ast.Attribute) and MPI_ADDS.fullmatch(node.attr)
    }
    called = {"comm/mpi.py": "Iallreduce", "comm/nccl.py": "allReduce"}
    assert {call for call in calls if call[1] not in OWN} == {*called.items()}
    for file in called:
        assigned = (node for _, node in nodes(file) if isinstance(node, ast.Assign))
        (table,) = (a.value for a in assigned if ast.unparse(a.targets[0]) == "_INTEGERS")
        assert isinstance(table, ast.Dict)
        for key, value in zip(table.keys, table.values, strict=True):
            assert re.fullmatch(
                r"'[iu][1248]' (MPI.U?INT\d+_T|'NCCL_U?INT\d+')",
                f"{ast.unparse(key)} {ast.unparse(value)}",
            )
        uses = [n for _, n in nodes(file) if isinstance(n, ast.Name) and n.id == "_INTEGERS"]
        assert len(uses) == 2  # the table, and its look-up by the type of the array


# libm's results differ from one to the next, and numpy's sums follow the processor.
INEXACT = {
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "tanh", "pow",
    "power", "cbrt", "hypot", "sum", "mean", "std", "var", "dot", "vdot", "matmul", "einsum",
    "inner", "tensordot", "linalg", "random",
}  # fmt: skip


def test_rule_17_weights_meet_no_libm() -> None:
    """What Python computes with floats on their way to a weight is + - * / and sqrt; the learning
    rate alone has a cosine, and is sent."""
    found = []
    for file, node in nodes("ops", "nn", "models", "optim", "parallel", "comm", "train/engine.py"):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.MatMult):
            text = ast.unparse(node)
            fine = re.fullmatch(r".* \*\* \d+", text)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in INEXACT:
            text = ast.unparse(node.func)
            fine = text.startswith(("kernels.", "kernels_of("))
        else:
            continue
        if not fine:
            found.append(f"{file}: {text}")
    assert found == ["optim/schedules.py: math.cos"]


def test_rule_17_rank_0_sends_the_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives is what counts, not what this rank's libm says."""
    layers = models.mlp(input_shape=(4, 4), classes=3, hidden_dim=8)
    samples = data.synthetic(samples=50, input_shape=(4, 4), classes=3)

    def digest_at(rate: float, sent: float | None) -> tuple[float, str]:
        mesh = Mesh(comm=Alone())
        if sent is not None:
            monkeypatch.setattr(mesh.world, "broadcast", lambda x: x.fill(sent))
        trainer = train.Trainer(
            layers, samples, mesh=mesh, optimizer=optim.AdamW(learning_rate=rate), batch=8
        )
        (step,) = trainer.steps(1)
        return step.learning_rate, state_digest(trainer.engine)

    assert digest_at(0.5, sent=0.125) == digest_at(0.125, sent=None)
    assert digest_at(0.5, sent=0.125) != digest_at(0.5, sent=None)


@pytest.mark.skipif(sys.platform != "linux", reason="an ELF section")
def test_rule_17_how_every_source_was_compiled() -> None:
    """As the compiler itself recorded it, once for each set of flags."""
    module = Path(_cpu.__file__).read_bytes()
    texts = re.findall(rb"[ -~]{40,}", module)
    lines = [x.decode() for x in texts if re.match(rb"GNU C\+\+|.*clang", x) and b" -O" in x]
    assert lines, "no source was compiled with -frecord-gcc-switches"
    for line in lines:
        flags = line.split()
        assert [f for f in flags if f.startswith("-ffp-contract")][-1:] == ["-ffp-contract=off"]
        assert not re.search(
            r"-Ofast|-ffast-math|-funsafe-math|-fassociative-math|-freciprocal-math|-fno-signed-zeros"
            r"|-ffinite-math|-march=native|-mtune=native|-mrecip|-mfma|-mavx|-flto|-ffp-model=fast"
            r"|-fexcess-precision=fast|-fcx-limited|-fopenmp",
            line,
        )


def test_rule_17_kernels_have_functions_of_their_own() -> None:
    """No libm but for what IEEE 754 defines, no estimates, no library that adds."""
    foreign = re.compile(
        r"\b(?:std::|__builtin_)?(?:exp|log|pow|sin|cos|tan|sinh|cosh|tanh|erf|cbrt|hypot)[f2]?\("
        r"|rsqrt|_rcp|pragma omp|std::(?:reduce|accumulate|inner_product)|fetch_add"
    )
    found = set()
    for file in sorted(CSRC.rglob("*.?pp")):
        for line in file.read_text().splitlines():
            for match in foreign.findall(
                re.sub(r"//.*|\bmath::\w+\(|F exp\(|float log\(", "", line)
            ):
                found.add(f"{file.name}: {match}")
    # The pool hands out ranges by a counter; inside math.hpp `exp` is its own.
    assert found <= {"threads.cpp: fetch_add", "math.hpp: exp("}


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
@pytest.mark.parametrize("flag", ["-ffast-math", "-ffinite-math-only", "-O2"])
def test_rule_17_sources_refuse_fast_math(flag: str) -> None:
    source = '#include "core/dtype.hpp"\n'
    command = ["c++", "-std=c++17", "-fsyntax-only", flag, "-I", CSRC, "-x", "c++", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0) == ("math" in flag)
    assert ("take -ffast-math" in done.stderr) == ("math" in flag)
