"""From a config to the objects of a run: data set, model, optimizer, trainer."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

from plait import data, models, optim
from plait.data import Dataset
from plait.mesh import Mesh
from plait.nn import LayerSpec
from plait.optim import Optimizer, Schedule
from plait.report import RunFolder
from plait.train import sections
from plait.train.config import Config, ConfigError
from plait.train.trainer import Trainer

STANDARD = {
    "gpt": models.gpt, "llama": models.llama, "mlp": models.mlp, "resnet": models.resnet,
    "vit": models.vit,
}  # fmt: skip


def build_dataset(config: Config) -> Dataset:
    """The data set as a description: nothing is read before prepare()."""
    c, length = config.data, sequence_length(config)
    if isinstance(c, sections.Text):
        return data.text(c.path, vocabulary=c.vocabulary, sequence_length=length)
    if isinstance(c, sections.Tokens):
        return data.tokens(
            c.path,
            vocabulary=c.vocabulary,
            sequence_length=length,
            dtype=c.dtype,
            held_out=c.held_out,
        )
    if isinstance(c, sections.Images):
        return data.images(c.path, image_size=c.image_size)
    if c.vocabulary is not None:
        return data.synthetic(
            samples=c.samples, vocabulary=c.vocabulary, sequence_length=length, seed=config.seed
        )
    return data.synthetic(
        samples=c.samples,
        input_shape=c.input_shape or (),
        classes=c.classes or 0,
        seed=config.seed,
    )


def sequence_length(config: Config) -> int:
    """Tokens a sample; 0 for models of something else."""
    model = config.model
    if isinstance(model, sections.Custom):
        return int(model.arguments.get("sequence_length", 0))
    return model.sequence_length if isinstance(model, sections.GPT | sections.Llama) else 0


def build_model(config: Config, dataset: Dataset) -> list[LayerSpec]:
    """The layers. Those of images need a prepared data set: they follow its shape and classes.

    A function of the user's own gets what it has parameters for of vocabulary, sequence_length,
    input_shape and classes, unless the config gives it. ConfigError if it cannot be called so.
    """
    known: dict[str, Any]
    if dataset.kind == "tokens":
        known = {"vocabulary": dataset.vocabulary, "sequence_length": dataset.sequence_length}
    else:
        known = {"input_shape": dataset.input_shape, "classes": dataset.classes}
    model = config.model
    if isinstance(model, sections.Custom):
        return _custom(model, known)
    given = {name: value for name, value in vars(model).items() if name != "kind"}
    make: Any = STANDARD[model.kind]
    specs: list[LayerSpec] = make(**{**known, **given})
    return specs


def _custom(model: sections.Custom, known: dict[str, Any]) -> list[LayerSpec]:
    module, _, name = model.kind.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as with `python -m`
    try:
        make = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ConfigError(
            f'model.kind = "{model.kind}" cannot be imported: {error}; the module is looked for in '
            "the working folder and on PYTHONPATH"
        ) from error
    if not callable(make):
        raise ConfigError(f'model.kind = "{model.kind}": {module} has no function {name}')
    signature = inspect.signature(make)
    arguments = {name: value for name, value in known.items() if name in signature.parameters}
    arguments |= model.arguments
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"[model]: {model.kind}{signature} cannot be called with "
            f"{', '.join(arguments) or 'nothing'}: {error}"
        ) from error
    specs: Any = make(**arguments)
    if not isinstance(specs, list) or not all(isinstance(spec, LayerSpec) for spec in specs):
        found = [type(spec).__name__ for spec in specs] if isinstance(specs, list) else specs
        raise ConfigError(
            f'model.kind = "{model.kind}" returned {found!r}: it must return a list of nn.LayerSpec'
        )
    if not specs:
        raise ConfigError(f'model.kind = "{model.kind}" returned no layers')
    return specs


def build_optimizer(config: Config) -> tuple[Optimizer, Schedule]:
    c = config.optimizer
    optimizer: Optimizer
    if isinstance(c, sections.AdamW):
        optimizer = optim.AdamW(
            learning_rate=c.learning_rate,
            betas=c.betas,
            epsilon=c.epsilon,
            weight_decay=c.weight_decay,
        )
    else:
        optimizer = optim.SGD(
            learning_rate=c.learning_rate, momentum=c.momentum, weight_decay=c.weight_decay
        )
    if c.schedule == "constant":
        return optimizer, optim.constant(warmup_steps=c.warmup_steps)
    make = optim.cosine if c.schedule == "cosine" else optim.linear
    if c.final is None:
        return optimizer, make(warmup_steps=c.warmup_steps)
    return optimizer, make(warmup_steps=c.warmup_steps, final=c.final)


def make_trainer(
    config: Config,
    specs: list[LayerSpec],
    dataset: Dataset,
    mesh: Mesh,
    run: RunFolder | None,
    record: dict[str, Any] | None = None,
    other_bits: bool = False,
) -> Trainer:
    train, grains = config.train, config.numerics.grains
    optimizer, schedule = build_optimizer(config)
    return Trainer(
        specs,
        dataset,
        mesh=mesh,
        optimizer=optimizer,
        schedule=schedule,
        clip=config.optimizer.clip,
        batch=train.batch,
        microbatch=train.microbatch,
        precision=train.precision,
        zero=config.layout.zero,
        seed=config.seed,
        recompute=train.recompute,
        pipeline_schedule=train.schedule,
        sequence_parallel=train.sequence_parallel,
        grains=grains if isinstance(grains, str) else (grains.data, grains.tensor),
        check_every=config.numerics.check_every,
        backend=config.backend,
        run=run,
        keep=config.checkpoint.keep,
        metadata=record,
        other_bits=other_bits,
    )
