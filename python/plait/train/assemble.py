"""From a config to the objects a Trainer takes: data, model, optimizer, schedule."""

import importlib
import inspect
import os
import sys
from typing import Any

from plait import data, models, optim
from plait.nn import LayerSpec
from plait.train import sections
from plait.train.config import Config, ConfigError


def make_data(config: Config) -> data.Dataset:
    """The dataset, still to be prepared. Raises ValueError for values that data refuses."""
    found, length = config.data, _sequence_length(config.model)
    if isinstance(found, sections.Text):
        return data.text(found.path, vocabulary=found.vocabulary, sequence_length=length)
    if isinstance(found, sections.Tokens):
        return data.tokens(
            found.path,
            vocabulary=found.vocabulary,
            sequence_length=length,
            dtype=found.dtype,
            held_out=found.held_out,
        )
    if isinstance(found, sections.Images):
        return data.images(found.path, image_size=found.image_size)
    return data.synthetic(
        samples=found.samples,
        vocabulary=found.vocabulary or 0,
        sequence_length=length if found.vocabulary else 0,
        input_shape=found.input_shape or (),
        classes=found.classes or 0,
        seed=config.seed,
    )


def make_layers(config: Config, dataset: data.Dataset) -> list[LayerSpec]:
    """The model for a dataset: of tokens at any time, of images once it is prepared.

    A function of the user's own also gets those of vocabulary, sequence_length, input_shape and
    classes that it has parameters for and the config does not give. Raises ConfigError if it
    cannot be imported or called so.
    """
    model = config.model
    if dataset.kind == "tokens":
        known: dict[str, Any] = {"vocabulary": dataset.vocabulary}
    else:
        known = {"input_shape": dataset.input_shape, "classes": dataset.classes}
    if isinstance(model, sections.Custom):
        return _custom(model, known)
    given = {name: value for name, value in vars(model).items() if name != "kind"}
    make = getattr(models, model.kind)
    layers: list[LayerSpec] = make(**given, **known)
    return layers


def make_optimizer(config: Config) -> optim.Optimizer:
    found = config.optimizer
    if isinstance(found, sections.SGD):
        return optim.SGD(
            learning_rate=found.learning_rate,
            momentum=found.momentum,
            weight_decay=found.weight_decay,
        )
    return optim.AdamW(
        learning_rate=found.learning_rate,
        betas=found.betas,
        epsilon=found.epsilon,
        weight_decay=found.weight_decay,
    )


def make_schedule(config: Config) -> optim.Schedule:
    found = config.optimizer
    if found.schedule == "constant":
        return optim.constant(warmup_steps=found.warmup_steps)
    make = optim.cosine if found.schedule == "cosine" else optim.linear
    if found.final is None:
        return make(warmup_steps=found.warmup_steps)
    return make(warmup_steps=found.warmup_steps, final=found.final)


def _sequence_length(model: sections.Model) -> int:
    if isinstance(model, sections.Custom):
        return int(model.arguments.get("sequence_length", 0))
    return int(getattr(model, "sequence_length", 0))


def _custom(model: sections.Custom, known: dict[str, Any]) -> list[LayerSpec]:
    module, _, name = model.kind.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as with `python -m`
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ConfigError(
            f'model.kind = "{model.kind}" cannot be imported: {error}; give the module as Python '
            "finds it from the working folder or PYTHONPATH"
        ) from error
    if not callable(function):
        raise ConfigError(f'model.kind = "{model.kind}": {module} has no function {name}')
    parameters = inspect.signature(function).parameters
    arguments = {name: value for name, value in known.items() if name in parameters}
    arguments |= model.arguments
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"[model]: {model.kind}{inspect.signature(function)} cannot be called with "
            f"{', '.join(arguments) or 'nothing'}: {error}"
        ) from error
    layers: list[LayerSpec] = function(**arguments)
    return layers
