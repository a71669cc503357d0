"""From a config to the objects of a run: data set, model, optimizer, mesh, trainer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from plait import data, models, optim
from plait.data import Dataset
from plait.errors import UserError
from plait.mesh import Mesh
from plait.nn import LayerSpec
from plait.optim import Optimizer, Schedule
from plait.train.grains import auto_grains

if TYPE_CHECKING:
    from plait.train.config import Config

STANDARD = {"gpt": models.gpt, "llama": models.llama, "mlp": models.mlp, "resnet": models.resnet}


def build_dataset(config: Config) -> Dataset:
    """The data set as a description: nothing is read before prepare()."""
    c = config.data
    length = config.model.arguments.get("sequence_length")
    if c.kind == "text":
        return data.text(c.path, vocabulary=c.vocabulary, sequence_length=length)
    if c.kind == "tokens":
        return data.tokens(c.path, vocabulary=c.vocabulary, sequence_length=length)
    if c.kind == "images":
        return data.images(c.path)
    return data.synthetic(**c.arguments)


def build_model(config: Config, dataset: Dataset) -> list[LayerSpec]:
    """The layers; a model that says so also gets vocabulary, classes and input_shape from the data."""
    kind, arguments = config.model.kind, dict(config.model.arguments)
    if kind in STANDARD:
        make: Any = STANDARD[kind]
    else:
        module, _, name = kind.partition(":")
        try:
            make = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"model.kind = {kind!r}: {error}") from error
    known = make.__code__.co_varnames[: make.__code__.co_argcount + make.__code__.co_kwonlyargcount]
    given = {
        "vocabulary": dataset.vocabulary,
        "sequence_length": dataset.sequence_length,
        "classes": dataset.classes,
        "input_shape": dataset.input_shape,
    }
    for name, value in given.items():
        if name in known and name not in arguments:
            arguments[name] = value
    try:
        specs: list[LayerSpec] = make(**arguments)
    except TypeError as error:
        raise UserError(f"[model] kind = {kind!r}: {error}") from error
    return specs


def build_optimizer(config: Config) -> tuple[Optimizer, Schedule]:
    c = config.optimizer
    optimizer: Optimizer
    if c.kind == "adamw":
        optimizer = optim.AdamW(
            learning_rate=c.learning_rate,
            betas=tuple(c.betas),
            epsilon=c.epsilon,
            weight_decay=c.weight_decay,
        )
    else:
        optimizer = optim.SGD(
            learning_rate=c.learning_rate, momentum=c.momentum, weight_decay=c.weight_decay
        )
    schedules = {"constant": optim.constant, "linear": optim.linear, "cosine": optim.cosine}
    return optimizer, schedules[c.schedule](warmup_steps=c.warmup_steps)


def build_mesh(config: Config, ranks: int) -> Mesh:
    layout = config.layout.resolve(ranks)
    return Mesh(layout.data, layout.tensor, layout.pipeline)


def build_grains(config: Config, specs: list[LayerSpec], mesh: Mesh) -> tuple[int, int]:
    grains = config.numerics.grains
    if grains == "auto":
        return auto_grains(specs, config.train.batch)
    if grains == "layout":
        return mesh.data.size, mesh.tensor.size
    return grains.data, grains.tensor
