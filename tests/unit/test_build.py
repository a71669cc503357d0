"""From a config to data, model, optimizer and schedule."""

from pathlib import Path

import numpy as np
import pytest

from plait import data, optim
from plait.train.build import build_dataset, build_model, build_optimizer
from plait.train.config import ConfigError, load

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "gpt-stdlib.toml"
TRAIN = "[train]\nsteps = 10\nbatch = 8\n"


def test_the_demo() -> None:
    config = load(DEMO)
    dataset = build_dataset(config)
    assert (dataset.vocabulary, dataset.sequence_length) == (4096, 128)
    specs = build_model(config, dataset)
    assert [spec.name for spec in specs] == [
        "embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "output",
    ]  # fmt: skip
    optimizer, schedule = build_optimizer(config)
    assert optimizer == optim.AdamW(learning_rate=6e-4, weight_decay=0.1)
    assert schedule == optim.cosine(warmup_steps=20)


def test_optimizers_and_schedules() -> None:
    config = load(DEMO, ["optimizer={kind='sgd', momentum=0.5, schedule='linear', final=0.2}"])
    assert build_optimizer(config) == (
        optim.SGD(learning_rate=1e-2, momentum=0.5, weight_decay=0.0),
        optim.linear(final=0.2),
    )
    config = load(DEMO, ["optimizer.schedule=constant", "optimizer.betas=[0.8, 0.9]"])
    assert build_optimizer(config) == (
        optim.AdamW(learning_rate=6e-4, betas=(0.8, 0.9)),
        optim.constant(warmup_steps=20),
    )


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ('kind = "mlp"\nhidden_dim = 8\nlayers = 1', ["layers.0", "head"]),
        (
            'kind = "vit"\nlayers = 1\nhidden_dim = 8\nheads = 2\npatch = 3',
            ["embed", "blocks.0", "output"],
        ),
        ('kind = "resnet"\nblocks = [1]\nwidth = 4', ["stem", "groups.0.0", "output"]),
    ],
)
def test_models_follow_the_shape_of_images(tmp_path: Path, model: str, names: list[str]) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((40, 6, 6), np.uint8), y=np.arange(40) % 3)
    path = tmp_path / "a.toml"
    path.write_text(
        f'[model]\n{model}\n[data]\nkind = "images"\npath = "{tmp_path}/a.npz"\n{TRAIN}'
    )
    config = load(path)
    dataset = build_dataset(config)
    dataset.prepare()
    specs = build_model(config, dataset)
    assert [spec.name for spec in specs] == names
    assert specs[-1].flops % 3 == 0


def test_every_kind_of_data(tmp_path: Path) -> None:
    llama = 'kind = "llama"\nlayers = 1\nhidden_dim = 8\nheads = 2\nsequence_length = 4'
    np.arange(100, dtype=np.uint32).tofile(tmp_path / "a.bin")
    path = tmp_path / "a.toml"
    for model, table, kind, samples in (
        (llama, f'kind = "tokens"\npath = "{tmp_path}/a.bin"\ndtype = "uint32"', "tokens", 23),
        (llama, 'kind = "synthetic"', "tokens", 65536),
        ('kind = "mlp"\nhidden_dim = 8', 'kind = "synthetic"', "images", 65536),
    ):
        sizes = "input_shape = [4, 4, 1]\nclasses = 3" if kind == "images" else "vocabulary = 100"
        path.write_text(f"[model]\n{model}\n[data]\n{table}\n{sizes}\n{TRAIN}")
        config = load(path)
        dataset = build_dataset(config)
        dataset.prepare()
        assert (dataset.kind, dataset.samples) == (kind, samples)
        assert build_model(config, dataset)


OWN = """
from plait import models

def tiny(*, vocabulary, width, sequence_length=0):
    assert (vocabulary, width, sequence_length) == (50, 3, 4)
    return models.gpt(layers=1, hidden_dim=8, heads=2, vocabulary=vocabulary, sequence_length=4)

number = 3

def nothing(**_):
    pass

def numbers(**_):
    return [1, 2]

def empty(**_):
    return []
"""


def test_a_model_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    (tmp_path / "own_models.py").write_text(OWN)
    path = tmp_path / "a.toml"
    path.write_text(
        '[model]\nkind = "own_models:tiny"\nwidth = 3\nsequence_length = 4\n'
        f'[data]\nkind = "synthetic"\nvocabulary = 50\n{TRAIN}'
    )
    dataset = data.synthetic(vocabulary=50, sequence_length=4)
    assert len(build_model(load(path), dataset)) == 3
    for override, message in (
        ("model.kind=nowhere:tiny", "cannot be imported: No module named 'nowhere'"),
        ("model.kind=own_models:huge", "own_models has no function huge"),
        ("model.kind=own_models:number", "own_models has no function number"),
        ("model.kind=own_models:nothing", "returned None: it must return a list of nn.LayerSpec"),
        ("model.kind=own_models:numbers", r"returned \['int', 'int'\]: it must return a list"),
        ("model.kind=own_models:empty", "returned no layers"),
        ("model.depth=3", r"\(\*, vocabulary, width, sequence_length=0\) cannot be called with"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_model(load(path, [override]), dataset)
