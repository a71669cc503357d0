"""Grains that a layout, a batch or heads do not allow: refused before anything starts, with lines
that work. Each refusal's own lines are written into the config, which is then accepted."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import plait
from plait import data, models, optim, train
from plait.comm.alone import Alone
from plait.errors import UserError
from plait.train import fit
from plait.train.checks import check_layout
from plait.train.config import load
from plait.train.dry_run import rehearse
from plait.train.fit import Plan

GPT = "model={{kind='gpt', layers=2, hidden_dim={}, heads={}, sequence_length=16}}"
LLAMA = "model={{kind='llama', layers=1, hidden_dim=48, heads=6, kv_heads={}, sequence_length=16}}"
TOKENS = "data={kind='synthetic', vocabulary=97}"
IMAGES = "data={kind='synthetic', input_shape=[8, 8, 1], classes=5}"
MODELS = [
    ((GPT.format(48, 6), TOKENS), 6),
    ((GPT.format(40, 5), TOKENS), 5),
    ((LLAMA.format(3), TOKENS), 3),
    (("model={kind='vit', layers=1, hidden_dim=24, heads=3}", IMAGES), 3),
    (("model={kind='resnet', blocks=[1], width=8}", IMAGES), 0),
]
FILE = '[model]\nkind = "mlp"\nhidden_dim = 8\n[train]\nsteps = 1\nbatch = 4\n'
FILE += '[data]\nkind = "synthetic"\nvocabulary = 9\n[numerics]\ncheck_every = 7\n'
LAYOUTS = ["1x1x1", "9x1x1", "2x4x1", "1x6x1", "4x3x2"]
GRAINS = ['"auto"', '"layout"', "{data=6, tensor=4}", "{data=20, tensor=1}"]


def refusal(file: Path, overrides: list[str]) -> str | None:
    try:
        rehearse(load(file, overrides), None)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("model", "units"), MODELS)
def test_the_lines_of_a_refusal_work(tmp_path: Path, model: tuple[str, ...], units: int) -> None:
    file = tmp_path / "a.toml"
    file.write_text(FILE)
    said = 0
    for layout, grains, batch in product(LAYOUTS, GRAINS, (4, 16)):
        given = [*model, f"layout={layout}", f"numerics.grains={grains}", f"train.batch={batch}"]
        text = refusal(file, given)
        if text is None:
            continue
        said += 1
        lines = re.findall("`([^`]+)`", text)
        assert lines, text
        changed = [line.replace(" = ", "=", 1) for line in lines]
        names = {line.partition("=")[0] for line in changed}
        kept = [line for line in given if line.partition("=")[0] not in names]
        assert refusal(file, [*kept, *changed]) is None, f"{given}: {text}"
        ranks = eval(layout.replace("x", "*"))
        with pytest.raises(UserError):  # before any rank is started
            check_layout(load(file, given), ranks)
        check_layout(load(file, [*kept, *changed]), ranks)  # on as many ranks
    assert said >= 25


def test_lines_change_as_little_as_possible() -> None:
    for plan, heads, text in [
        (Plan(16, 1, 1, 32, (8, 2)), 0, "set `numerics.grains = {data = 16, tensor = 2}` (this "),
        (Plan(1, 4, 1, 8, (8, 2)), 6, "set `numerics.grains = {data = 8, tensor = 6}` (this "),
        (Plan(1, 1, 1, 8, (8, 4)), 6, "set `numerics.grains = {data = 8, tensor = 3}` (this "),
        (Plan(1, 1, 1, 4, (8, 2)), 6, "set `numerics.grains = {data = 4, tensor = 2}` (this "),
        (Plan(6, 1, 1, 4, (6, 1)), 6, "set `train.batch = 6` (this "),
        (Plan(1, 6, 1, 8, (8, 2)), 3, ' tensor = 3}` and `layout = "2x3x1"` (this '),
    ]:
        named = [("blocks.0", heads)] if heads else []
        with pytest.raises(ValueError, match=re.escape(text)):
            fit.check(plan, named)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"grains": (9, 2)},
            r"9 data grains are more than the 8 samples .* give `grains=\(8, 2\)`",
        ),
        ({"grains": (8, 4)}, r"do not divide the 6 heads of blocks.0: give `grains=\(8, 3\)`"),
        ({"grains": (8, 0)}, r"grains must be .*, got \(8, 0\)"),
    ],
)
def test_a_trainer_says_it_in_python(arguments: dict[str, Any], message: str) -> None:
    sizes = {"layers": 1, "hidden_dim": 48, "heads": 6, "vocabulary": 97, "sequence_length": 16}
    samples = data.synthetic(samples=20, vocabulary=97, sequence_length=16)

    def make(**changes: Any) -> train.Trainer:
        mesh = plait.Mesh(comm=Alone())
        known = {"mesh": mesh, "optimizer": optim.SGD(), "batch": 8, **changes}
        return train.Trainer(models.gpt(**sizes), samples, **known)

    with pytest.raises(ValueError, match=message) as error:
        make(**arguments)
    for found in re.findall(r"`grains=\((\d+), (\d+)\)`", str(error.value)):
        make(grains=tuple(map(int, found)))
