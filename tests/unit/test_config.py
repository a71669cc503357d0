"""The config: every option, defaults, overrides, round trips, resuming."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from configs import CUSTOM, SMALL, TOKENS, with_tables, write

from plait.train import config, sections
from plait.train.config import Config, ConfigError, compare, dump, load, load_record, options

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))

# Adding an option is a decision: it is written here too.
OPTIONS = Path(__file__).with_name("config_options.txt").read_text("utf-8")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path)


def test_every_option_is_listed() -> None:
    lines = []
    for each in options():
        kind = f" ({each.kind})" if each.kind else ""
        lines.append(f"{each.key}{kind} = {each.default}")
        assert each.doc
        assert each.type
    assert lines == OPTIONS.strip().splitlines()


def test_the_reference_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plait.train.config"], capture_output=True, text=True, check=True
    )
    page = (ROOT / "docs" / "config.md").read_text()
    assert page == done.stdout, "python -m plait.train.config > docs/config.md"


def test_a_config_needs_neither_numpy_nor_mpi(small: Path) -> None:
    program = (
        "import sys; from plait.train.config import load;"
        f"load({str(small)!r}); print('numpy' in sys.modules, 'mpi4py' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_defaults(small: Path) -> None:
    found = load(small)
    assert found == Config(
        name="small",
        seed=0,
        runs_dir="runs",
        threads=0,
        model=sections.GPT(layers=2, hidden_dim=64, heads=4, sequence_length=32),
        data=sections.Text(path="python-stdlib", vocabulary=300),
        train=sections.Train(steps=10, batch=8),
        optimizer=sections.AdamW(),
        layout=sections.Layout(data=None, tensor=1, pipeline=1, zero=0),
    )
    assert found.numerics.grains == "auto"
    assert found.model.mlp_dim is None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load(path: Path) -> None:
    found = load(path)
    assert found.name == path.stem
    assert load(path, ["train.steps=3"]).train.steps == 3


def test_the_demo() -> None:
    found = load(ROOT / "examples" / "gpt-stdlib.toml")
    assert found.layout.ranks == 4
    assert (found.layout.data, found.layout.tensor, found.layout.zero) == (2, 2, 1)
    assert found.optimizer.learning_rate == 6e-4
    assert (found.train.steps, found.train.batch, found.train.microbatch) == (300, 16, 4)
    assert found.checkpoint.every == found.evaluate.every == 100


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_is_dumped_loads_to_the_same(path: Path, tmp_path: Path) -> None:
    for overrides in ([], ["numerics.grains={data=12, tensor=1}", "layout=1x1x1", "name=b.c-1"]):
        found = load(path, overrides)
        text = dump(found, {"plait": "0.1", "fingerprint": 'a"b', "nested": {"mpi": ["x", 1]}})
        assert load(write(tmp_path, text, "again.toml")) == found
        record = load_record(tmp_path / "again.toml")
        assert record == {"plait": "0.1", "fingerprint": 'a"b', "nested": {"mpi": ["x", 1]}}
        assert tomllib.loads(dump(found)) == {
            key: value for key, value in tomllib.loads(text).items() if key != "record"
        }


def test_overrides(small: Path) -> None:
    found = load(
        small,
        [
            "train.steps=100",
            "name=other",
            "layout=2x2x1",
            "layout.zero=1",
            "optimizer.learning_rate=1",
            "optimizer.betas=[0.8, 0.9]",
            "train.precision=float32",
            'data.path="a b"',
            "numerics.grains={data = 4, tensor = 2}",
            " train.sequence_parallel = true ",
        ],
    )
    assert (found.name, found.train.steps, found.data.path) == ("other", 100, "a b")
    assert found.layout == sections.Layout(data=2, tensor=2, pipeline=1, zero=1)
    assert found.optimizer.learning_rate == 1.0
    assert isinstance(found.optimizer.learning_rate, float)
    assert found.optimizer.betas == (0.8, 0.9)
    assert found.train.precision == "float32"
    assert found.numerics.grains == sections.Grains(data=4, tensor=2)
    assert found.train.sequence_parallel is True
    assert load(small, ["name=2024"]).name == "2024"  # a number where a string is wanted
    assert load(small, ["data.path=true"]).data.path == "true"
    assert load(small, ["train.steps=5", "train.steps=6"]).train.steps == 6
    assert load(small, ["numerics.grains=layout"]).numerics.grains == "layout"


def test_a_layout_given_short_keeps_zero(tmp_path: Path) -> None:
    table = write(tmp_path, SMALL + "[layout]\ntensor = 4\nzero = 1\n")
    assert load(table).layout == sections.Layout(data=None, tensor=4, zero=1)
    assert load(table, ["layout=2x1x2"]).layout == sections.Layout(data=2, pipeline=2, zero=1)
    short = write(tmp_path, 'layout = "2x1x3"\n' + SMALL)
    assert load(short).layout == sections.Layout(data=2, pipeline=3)
    assert load(short, ["layout.tensor=2"]).layout == sections.Layout(data=2, tensor=2, pipeline=3)
    assert load(short, ["layout={tensor=2}"]).layout == sections.Layout(tensor=2)


def test_layouts_on_ranks(small: Path) -> None:
    free, fixed = load(small, ["layout.tensor=2"]), load(small, ["layout=2x2x1"])
    assert (free.layout.ranks, fixed.layout.ranks) == (None, 4)
    assert (str(free.layout), str(fixed.layout)) == ("*x2x1", "2x2x1")
    assert free.layout.resolve(6) == sections.Layout(data=3, tensor=2)
    assert fixed.layout.resolve(4) == fixed.layout
    with pytest.raises(ConfigError, match=r"tensor x pipeline = 2 x 1 does not divide 3 ranks"):
        free.layout.resolve(3)
    with pytest.raises(ConfigError, match=r'layout = "2x2x1" needs 4 ranks, there are 6: start 4'):
        fixed.layout.resolve(6)


def test_a_config_of_hand_has_no_record(small: Path) -> None:
    assert load_record(small) == {}


def test_a_model_of_the_users_own(tmp_path: Path) -> None:
    path = with_tables(tmp_path, CUSTOM, 'kind = "images"\npath = "digits"')
    found = load(path, ["model.depth=3", "model.act=relu"])
    assert found.model == sections.Custom(
        "my.models:tiny", {"widths": [1, 2], "nested": {"a": 1}, "depth": 3, "act": "relu"}
    )
    assert load(write(tmp_path, dump(found), "again.toml")).model == found.model
    assert load(with_tables(tmp_path, CUSTOM + "sequence_length = 8", TOKENS)).data.kind == "tokens"


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["name=b", "runs_dir=c", "threads=3", "memory=1.5", "layout=2x2x1", "layout.zero=1"], []),
        (["train.steps=99", "checkpoint.every=1", "evaluate.every=4", "evaluate.batches=2"], []),
        (["train.microbatch=2", "train.recompute=layer", "train.schedule=gpipe"], []),
        (["train.sequence_parallel=true", "data.path=elsewhere"], []),
        (["seed=2"], ["seed"]),
        (["train.batch=16", "train.precision=float32"], ["train.batch", "train.precision"]),
        (["model.layers=3", "model.mlp_dim=5"], ["model.layers", "model.mlp_dim"]),
        (["optimizer.clip=1", "data.vocabulary=400"], ["data.vocabulary", "optimizer.clip"]),
        (["numerics.grains={data=8, tensor=2}", "numerics.check_every=1"], []),
    ],
)
def test_what_may_differ_on_resuming(small: Path, overrides: list[str], keys: list[str]) -> None:
    first, second = load(small), load(small, overrides)
    assert compare(first, second) == compare(second, first) == keys


def test_modules_say_what_they_offer() -> None:
    assert {"Config", "ConfigError", "compare", "dump", "load", "load_record", "options"} == set(
        config.__all__
    )


def test_a_byte_order_mark_and_any_locale(tmp_path: Path) -> None:
    file = tmp_path / "marked.toml"
    text = (ROOT / "examples" / "gpt-stdlib.toml").read_text("utf-8")
    file.write_bytes(b"\xef\xbb\xbf" + f"# \u00fcn\u00ef\n{text}".encode())
    assert load(file, ["name=x"]) == load(ROOT / "examples" / "gpt-stdlib.toml", ["name=x"])
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    overrides = ["data={kind='synthetic', vocabulary=97}", f"runs_dir={tmp_path}", "train.steps=1"]
    overrides += ["model.layers=1", "model.hidden_dim=8", "model.heads=2", "layout=1x1x1"]
    done = subprocess.run(
        [sys.executable, "-m", "plait", "train", str(file), *overrides],
        env=environment,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_file_that_gives_no_name(tmp_path: Path) -> None:
    file = tmp_path / "my run.toml"
    text = (ROOT / "examples" / "gpt-stdlib.toml").read_text("utf-8")
    file.write_text(text.partition("\n")[2], "utf-8")
    with pytest.raises(ConfigError, match=r'cannot be named "my run" .* such as name=my-run'):
        load(file)
    assert load(file, ["name=x"]).name == "x"
