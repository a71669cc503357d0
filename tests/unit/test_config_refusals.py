"""Configs that are refused: which line, which key, what is asked for."""

import re
from pathlib import Path

import pytest
from configs import CUSTOM, LLAMA, MLP, SMALL, TOKENS, with_tables, write

from plait.train.checks import check_folder
from plait.train.config import ConfigError, load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path)


REFUSED = [
    ("train.stpes=5", "command line: train.stpes: unknown key; the nearest is steps"),
    ("train.learning_rate=5", "did you mean optimizer.learning_rate?"),
    ("steps=5", "command line: steps: unknown key; did you mean train.steps?"),
    ("train.every=5", "did you mean checkpoint.every or evaluate.every?"),
    ("xyzzy=5", "unknown key; the keys here are name, seed"),
    ("traim.steps=5", "traim: unknown key; the nearest is train"),
    ("model.kind=gtp", 'model.kind = "gtp" must be gpt | llama | resnet | vit | mlp'),
    ("model.kind=gtp", "the nearest is gpt"),
    ("model.rope_base=2", "model.rope_base is a key of kind llama, not of gpt: remove it"),
    ("model.kind=mlp", "model.heads is a key of kind gpt, llama, vit, not of mlp"),
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


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.toml: cannot be read: No such file"):
        load(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "x\xe9"')
    with pytest.raises(ConfigError, match=r"latin.toml: is not TOML"):
        load(tmp_path / "latin.toml")


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
