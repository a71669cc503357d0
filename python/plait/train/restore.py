"""A saved run and its model, without its training: where evaluate and generate start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plait import checkpoint
from plait.comm import Communicator
from plait.data import Dataset, Tokenizer
from plait.errors import UserError
from plait.mesh import Mesh
from plait.report import Screen, on_rank_0
from plait.train import sections
from plait.train.build import build_model, make_trainer
from plait.train.config import Config, load, load_record
from plait.train.setup import grains_of, ranks_here, set_threads
from plait.train.trainer import Trainer

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class SavedRun:
    """The folder of a run, one of its checkpoints, and what its config.toml says."""

    folder: Path
    checkpoint: Path
    config: Config
    record: dict[str, Any]


def find_run(path: Path, world: Communicator) -> SavedRun:
    """The run that a path means, at its newest checkpoint; or a checkpoint, and its run. Newer
    checkpoints that cannot be read are named on the screen. Collective."""
    return on_rank_0(world, path, lambda: _find(path))


def _find(path: Path) -> SavedRun:
    found = checkpoint.find(path, Screen().say)
    own = path / "config.toml"
    folder = path if own.exists() else found.absolute().parent.parent
    place = folder / own.name
    if not place.exists():
        raise UserError(
            f"{path} is not of a run: there is no {place}; give runs/NAME or one of its checkpoints"
        )
    return SavedRun(folder, found, load(place), load_record(place))


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that a run keeps."""
    place = folder / TOKENIZER
    mend = "copy it from where the run was trained, or give its `plait train` command once more"
    try:
        tokenizer = Tokenizer(place.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror}; {mend}") from None
    except UnicodeDecodeError:
        raise UserError(f"{place} is damaged: it is not UTF-8; {mend}") from None
    try:
        tokenizer.decode([])
    except UserError:
        raise  # the tokenizers package is not there
    except Exception as error:  # it has no type of its own for this
        raise UserError(f"{place} is damaged: {error}; {mend}") from None
    return tokenizer


def check_data(folder: Path, record: dict[str, Any], dataset: Dataset) -> None:
    """Refuses other data than the run in that folder was trained on, by the run's record."""
    if record.get("data", dataset.fingerprint) != dataset.fingerprint:
        raise UserError(
            f"{folder} holds a run on other data: the content of data.path has changed; give "
            "this run another name, or start it afresh with --fresh"
        )


def restored(run: SavedRun, dataset: Dataset, world: Communicator) -> Trainer:
    """A trainer at the run's checkpoint on a prepared data set, at the layout of this world. It has
    no run folder and is not to train."""
    config = run.config
    set_threads(config, ranks_here(world))
    specs = build_model(config, dataset)
    layout = (
        config.layout if config.layout.ranks == world.size else sections.Layout(data=world.size)
    )
    mesh = Mesh(layout.data or 1, layout.tensor, layout.pipeline, comm=world)
    data, tensor = grains_of(config, specs, layout)
    # nothing is summed over data leaves here: there may be more ranks than the run had leaves
    leaves = max(data, mesh.layout.data)
    config = replace(
        config,
        numerics=replace(config.numerics, grains=sections.Grains(data=leaves, tensor=tensor)),
        train=replace(config.train, batch=max(config.train.batch, leaves)),
    )
    trainer = make_trainer(config, specs, dataset, mesh, None)
    trainer.load(run.checkpoint)
    return trainer
