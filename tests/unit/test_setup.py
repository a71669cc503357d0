"""Before the first step: a rank's share of the cores, what --dry-run refuses, memory's mend."""

import os
from pathlib import Path

import pytest

from plait.comm.alone import Alone
from plait.errors import UserError
from plait.train import setup
from plait.train.config import Config, load
from plait.train.dry_run import rehearse

MODEL = """
[model]
kind = "gpt"
layers = 2
hidden_dim = 48
heads = 3
sequence_length = 16
[train]
steps = 8
batch = 8
"""
SYNTHETIC = '[data]\nkind = "synthetic"\nvocabulary = 97\n'


def config(tmp_path: Path, *overrides: str, data: str = SYNTHETIC) -> Config:
    file = tmp_path / "small.toml"
    file.write_text(MODEL + data)
    return load(file, overrides)


class Told(Alone):
    """A world whose ranks have these (host, cores)."""

    def __init__(self, *all_ranks: tuple[str, set[int]]) -> None:
        super().__init__()
        self.all_ranks = list(all_ranks)

    def all_gather_object(self, value: object) -> list[object]:
        return [value, *self.all_ranks]


@pytest.mark.parametrize(
    ("own", "others", "cores"),
    [
        (range(8), [range(8)] * 7, 1),  # one mask for all
        (range(8), [range(8, 16)], 8),  # a mask each
        (range(8), [range(4, 12)], 6),  # half of it shared
        (range(2), [range(2)] * 3, 1),  # more ranks than cores
        (range(6), [], 6),
    ],
)
def test_a_rank_s_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, own: range, others: list[range], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(own))
    monkeypatch.setattr(setup.socket, "gethostname", lambda: "here")
    world = Told(*(("here", set(other)) for other in others), ("there", set(own)))
    assert setup.ranks_here(world) == setup.Here(1 + len(others), cores)


def test_too_many_threads(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="threads = 100000 is more than 32 for each of the"):
        setup.set_threads(config(tmp_path, "threads=100000"), setup.Here(1, 1))


@pytest.mark.parametrize(
    ("overrides", "ranks", "message"),
    [
        (["layout=2x1x1"], 3, r'layout = "2x1x1" needs 2 ranks, there are 3'),
        (["layout=1x2x1"], None, "has tensor size 2, more than its 1 grains"),
        (["layout=16x1x1", "train.batch=32"], None, "has data size 16, more than its 8 grains"),
        (["layout=1x2x1", "numerics.grains=layout"], None, "2 tensor grains do not divide the 3"),
        (["layout=1x1x9"], None, "layout.pipeline = 9 needs at least as many layers"),
        (["threads=100000"], None, "threads = 100000"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    tmp_path: Path, overrides: list[str], ranks: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rehearse(config(tmp_path, *overrides), ranks)


@pytest.mark.parametrize("kind", ["text", "tokens", "images"])
def test_a_dry_run_misses_the_data(tmp_path: Path, kind: str) -> None:
    vocabulary = "" if kind == "images" else "vocabulary = 300\n"
    data = f'[data]\nkind = "{kind}"\npath = "/nowhere/at-all"\n{vocabulary}'
    model = ["model={kind='mlp', hidden_dim=8}"] if kind == "images" else []
    with pytest.raises(UserError, match="'/nowhere/at-all': no such file"):
        rehearse(config(tmp_path, *model, data=data), None)


def test_a_dry_run_does_not_tokenise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "text").write_text("some words\n" * 100)
    data = f'[data]\nkind = "text"\npath = "{tmp_path}/text"\nvocabulary = 300\n'
    rehearse(config(tmp_path, data=data), None)
    assert not (tmp_path / "cache").exists()


def test_a_mend_that_would_be_refused_is_not_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three heads have one tensor grain, and more ranks on this host get less each."""
    big = ["model.hidden_dim=1536", "train.batch=1", "train.recompute=layer"]
    monkeypatch.setattr(setup, "limit_bytes", lambda: 800 << 20)
    with pytest.raises(UserError, match="no change known fits: use more hosts"):
        setup.check_memory(*described(config(tmp_path, *big)), setup.Here(1, 1))
    with pytest.raises(UserError, match='the smallest change that fits: layout = "1x1x2"'):
        setup.check_memory(*described(config(tmp_path, *big, "memory=0.6")), setup.Here(1, 1))


def described(config: Config):  # type: ignore[no-untyped-def]
    from plait.train.build import build_dataset, build_model

    return config, build_model(config, build_dataset(config)), config.layout.resolve(1)
