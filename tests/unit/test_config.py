"""The config: every option, defaults, overrides, refusals and mends, round trips, resuming."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from plait.train import config, sections
from plait.train.checks import check_folder
from plait.train.config import Config, ConfigError, compare, dump, load, load_record, options

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))

# Adding an option is a decision: it is written here too.
OPTIONS = Path(__file__).with_name("config_options.txt").read_text("utf-8")

SMALL = """
[model]
kind = "gpt"
layers = 2
hidden_dim = 64
heads = 4
sequence_length = 32
[data]
kind = "text"
path = "python-stdlib"
vocabulary = 300
[train]
steps = 10
batch = 8
"""


def write(folder: Path, text: str = SMALL, name: str = "small.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


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


REFUSED = [
    ("train.stpes=5", "command line: train.stpes: unknown key; the nearest is steps"),
    ("train.learning_rate=5", "did you mean optimizer.learning_rate?"),
    ("steps=5", "command line: steps: unknown key; did you mean train.steps?"),
    ("train.every=5", "did you mean checkpoint.every or evaluate.every?"),
    ("xyzzy=5", "unknown key; the keys here are name, seed"),
    ("traim.steps=5", "traim: unknown key; the nearest is train"),
    ("model.kind=gtp", 'model.kind = "gtp" must be gpt | llama | resnet | mlp'),
    ("model.kind=gtp", "the nearest is gpt"),
    ("model.rope_base=2", "model.rope_base is a key of kind llama, not of gpt: remove it"),
    ("model.kind=mlp", "model.heads is a key of kind gpt, llama, not of mlp"),
    ("optimizer.momentum=0.5", "is a key of kind sgd, not of adamw"),
    ("train.steps=0", "command line: train.steps = 0 must be an integer, at least 1"),
    ("train.steps=1.5", "train.steps = 1.5 must be an integer"),
    ("train.steps=true", "train.steps = true must be an integer"),
    ("train.steps=many", 'train.steps = "many" must be an integer'),
    ("train.steps=", 'train.steps = "" must be an integer'),
    ("train.sequence_parallel=1", "train.sequence_parallel = 1 must be true or false"),
    ("train.precision=fp16", 'train.precision = "fp16" must be "bfloat16" | "float32"'),
    ("train.recompute=true", 'train.recompute = true must be "none" | "layer"'),
    ("train=5", "train = 5 must be a table: [train]"),
    ("model=gpt", 'model = "gpt" must be a table: [model]'),
    ("optimizer.betas=[0.9]", "optimizer.betas = [0.9] must be a list of 2 numbers"),
    ("optimizer.betas=[0.9, 1.0]", "at least 0 and below 1"),
    ("optimizer.betas=0.9", "optimizer.betas = 0.9 must be a list of 2 numbers"),
    ("optimizer.learning_rate=0", "optimizer.learning_rate = 0 must be a number, above 0"),
    ("optimizer.learning_rate=nan", "optimizer.learning_rate = nan must be a number"),
    ("optimizer.clip=inf", "optimizer.clip = inf must be a number"),
    ("seed=-1", "seed = -1 must be an integer, at least 0"),
    ("name=a/b", 'name = "a/b" must be letters'),
    ("name=..", "must be letters"),
    ("layout=2x2", 'layout = "2x2" must be data x tensor x pipeline'),
    ("layout=0x1x1", "layout.data = 0 must be an integer, at least 1"),
    ("layout=4", "layout = 4 must be a table"),
    ("layout.zero=2", "layout.zero = 2 must be 0 | 1"),
    ("layout.zero=true", "layout.zero = true must be 0 | 1"),
    ("train.microbatch=9", "train.microbatch = 9 must be at most train.batch = 8"),
    ("model.heads=3", "model.heads = 3 must divide model.hidden_dim = 64"),
    ("model.dropout=1", "model.dropout = 1 must be a number, at least 0 and below 1"),
    ("data.vocabulary=256", "data.vocabulary = 256 must be an integer, at least 257"),
    ("data.kind=images", "data.vocabulary is a key of kind text, tokens, synthetic, not of images"),
    ("numerics.grains=best", 'must be { data = ..., tensor = ... } | "auto" | "layout"'),
    ("numerics.grains={data=4}", "numerics.grains.tensor is missing"),
    ("numerics.grains={data=9, tensor=2}", "numerics.grains.data = 9 must be at most train.batch"),
    ("numerics.grains={data=8, tensor=3}", "numerics.grains.tensor = 3 must divide the model's 4"),
    ("evaluate.batches=0", "evaluate.batches = 0 must be an integer, at least 1"),
    ("train.steps", "'train.steps' must be key=value"),
    ("=5", "'=5' must be key=value"),
    ("train..steps=5", "must be key=value"),
    ("name.first=5", "name.first: name = \"small\" is no table"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), REFUSED)
def test_refusals(small: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(small, [override])
    assert message in str(error.value)
    kind_changed = override in {"model.kind=mlp", "data.kind=images"}  # the file has other keys
    assert str(error.value).startswith(str(small) if kind_changed else "command line: ")
    assert "\n" not in str(error.value)


def test_grains_must_hold_the_layout(small: Path) -> None:
    with pytest.raises(ConfigError, match=r"numerics.grains.data = 2 must be at least layout.data"):
        load(small, ["numerics.grains={data=2, tensor=2}", "layout=4x1x1"])


def test_refusals_in_the_file_name_it(tmp_path: Path) -> None:
    for text, message in (
        (SMALL + "stpes = 3\n", "train.stpes: unknown key; the nearest is steps"),
        (SMALL.replace("steps = 10", ""), "train.steps is missing: give it a value (length of"),
        (SMALL.replace('kind = "gpt"', ""), "model.kind is missing: give gpt | llama"),
        (SMALL.replace("[train]", "[training]"), "training: unknown key; the nearest is train"),
        (SMALL + "[checkpoint]\nevery = -1", "checkpoint.every = -1 must be"),
        ("layout = [2]\n" + SMALL, "layout = [2] must be a table"),
        ('layout = "2-2"\n' + SMALL, 'layout = "2-2" must be data x tensor x pipeline'),
        ("", "model.kind is missing"),
        ("name = ", "is not TOML"),
        ("a = 1\na = 2\n", "is not TOML"),
    ):
        path = write(tmp_path, text)
        with pytest.raises(ConfigError) as error:
            load(path, ["threads=1"])
        assert str(error.value).startswith(f"{path}: ")
        assert message in str(error.value)


def test_a_config_of_hand_has_no_record(small: Path) -> None:
    assert load_record(small) == {}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.toml: cannot be read: No such file"):
        load(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "x\xe9"')
    with pytest.raises(ConfigError, match=r"latin.toml: is not TOML"):
        load(tmp_path / "latin.toml")


def with_tables(folder: Path, model: str, data: str) -> Path:
    train = "[train]\nsteps = 10\nbatch = 8\n"
    return write(folder, f"[model]\n{model}\n[data]\n{data}\n{train}")


LLAMA = 'kind = "llama"\nlayers = 2\nhidden_dim = 64\nheads = 8\nsequence_length = 16\n'
MLP = 'kind = "mlp"\nhidden_dim = 8'
TOKENS = 'kind = "tokens"\npath = "a.bin"\nvocabulary = 50'
CUSTOM = 'kind = "my.models:tiny"\nwidths = [1, 2]\nnested = { a = 1 }\n'


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (MLP, TOKENS, 'data.kind = "tokens" must be images for a model of kind "mlp"'),
        (LLAMA, 'kind = "images"\npath = "digits"', "must be text, tokens or synthetic"),
        (LLAMA + "kv_heads = 3", TOKENS, "model.kv_heads = 3 must divide model.heads = 8"),
        (LLAMA + "heads_ = 1", TOKENS, "model.heads_: unknown key; the nearest is heads"),
        (LLAMA.replace("64", "72"), TOKENS, "model.heads = 8 must leave each head an even width"),
        (MLP, 'kind = "synthetic"', "data of kind synthetic must have vocabulary, or"),
        (MLP, 'kind = "synthetic"\nclasses = 3', "data of kind synthetic must have"),
        (MLP, 'kind = "synthetic"\nvocabulary = 3', "must be images"),
        (LLAMA, 'kind = "synthetic"\ninput_shape = [3]\nclasses = 3', "must be text"),
        (MLP, 'kind = "synthetic"\ninput_shape = []\nclasses = 3', "must be a list of integers"),
        (MLP, 'kind = "synthetic"\ninput_shape = [3, 0]\nclasses = 3', "at least 1"),
        (CUSTOM, TOKENS, "model.sequence_length must be an integer, at least 1"),
        ('kind = "a b:c"', TOKENS, 'or "package.module:function"'),
        ('kind = 5', TOKENS, "model.kind = 5 must be gpt"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit(tmp_path: Path, model: str, data: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(with_tables(tmp_path, model, data))
    assert message in str(error.value)


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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden_dim=33", "command line: model.hidden_dim = 33 must be a multiple of model."),
        ("model.heads=3", "command line: model.heads = 3 must divide model.hidden_dim = "),
        ("train.batch=1", "command line: train.batch = 1 must be at least train.microbatch = 4"),
        ("train.microbatch=99", "command line: train.microbatch = 99 must be at most train.batch"),
    ],
)
def test_of_two_keys_the_one_that_was_changed_is_blamed(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(ROOT / "examples" / "gpt-stdlib.toml", [override])


def test_only_sequences_are_cut() -> None:
    message = 'train.sequence_parallel = true must be false: a model of kind "resnet" has no sequ'
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(ROOT / "examples" / "fashion-mnist.toml", ["train.sequence_parallel=true"])


def test_a_file_that_gives_no_name(tmp_path: Path) -> None:
    file = tmp_path / "my run.toml"
    text = (ROOT / "examples" / "gpt-stdlib.toml").read_text("utf-8")
    file.write_text(text.partition("\n")[2], "utf-8")
    with pytest.raises(ConfigError, match=r'cannot be named "my run" .* such as name=my-run'):
        load(file)
    assert load(file, ["name=x"]).name == "x"


@pytest.mark.parametrize("runs_dir", ["/proc/x", "{file}", "{file}/below"])
def test_a_runs_dir_where_nothing_can_be_made(tmp_path: Path, runs_dir: str) -> None:
    file = tmp_path / "file"
    file.touch()
    runs = runs_dir.format(file=file)
    found = load(ROOT / "examples" / "gpt-stdlib.toml", [f"runs_dir={runs}"])
    with pytest.raises(ConfigError, match=f'runs_dir = "{re.escape(runs)}": no folder can be made'):
        check_folder(found)
    check_folder(load(ROOT / "examples" / "gpt-stdlib.toml", [f"runs_dir={tmp_path}/a/b"]))
    assert list(tmp_path.iterdir()) == [file]
