"""What one key alone cannot tell: whether the tables of a config fit together."""

import os
import re
import tempfile
from typing import TYPE_CHECKING

from plait.train import fit, sections
from plait.train.grains import auto_grains_of
from plait.train.options import ConfigError, Source
from plait.train.toml import to_toml

if TYPE_CHECKING:
    from plait.train.config import Config

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def check(config: "Config", source: Source) -> None:
    """Raises ConfigError for the first thing that does not fit."""
    if not NAME.fullmatch(config.name):
        raise source.wrong("name", config.name, "must be letters, digits, dots, - and _: a folder")
    _model(config.model, source)
    _data(config.model, config.data, source)
    train = config.train
    if train.microbatch is not None and train.microbatch > train.batch:
        pair = ("train.microbatch", train.microbatch), ("train.batch", train.batch)
        raise _either(source, *pair, "be at most", "be at least")
    if train.sequence_parallel and isinstance(config.model, sections.MLP | sections.ResNet):
        mend = (
            f"must be false: a model of kind {to_toml(config.model.kind)} has no sequences to cut"
        )
        raise source.wrong("train.sequence_parallel", True, mend)
    _grains(config, source)


def check_layout(config: "Config", ranks: int) -> None:
    """Raises ConfigError where so many ranks cannot be laid out, or grains do not allow it. Models
    of the user's own may still refuse grains."""
    layout = config.layout.resolve(ranks)
    try:
        fit.check(_plan(config, layout), _heads(config))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_folder(config: "Config") -> None:
    """Raises ConfigError where the run's folder cannot be made; makes nothing that stays."""
    if os.path.exists(os.path.join(config.runs_dir, config.name)):
        return
    above = os.path.abspath(config.runs_dir)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".plait-", dir=above))
    except OSError as error:
        raise ConfigError(
            f"runs_dir = {to_toml(config.runs_dir)}: no folder can be made in {above}: "
            f"{error.strerror}; give another runs_dir"
        ) from None


def _either(
    source: Source,
    first: tuple[str, object],
    second: tuple[str, object],
    so: str,
    else_so: str,
    mend: str = "",
) -> ConfigError:
    """Two keys that do not fit: the second is blamed where it alone is from the command line."""
    if source.given(second[0]) and not source.given(first[0]):
        first, second, so = second, first, else_so
    text = f"must {so} {second[0]} = {to_toml(second[1])}"
    return source.wrong(*first, f"{text}: {mend}" if mend else text)


def _model(model: sections.Model, source: Source) -> None:
    attention = _with_heads(model)
    if attention is not None and attention.hidden_dim % attention.heads:
        pair = ("model.heads", attention.heads), ("model.hidden_dim", attention.hidden_dim)
        raise _either(source, *pair, "divide", "be a multiple of")
    if isinstance(model, sections.Llama):
        if model.heads % (model.kv_heads or model.heads):
            pair = ("model.kv_heads", model.kv_heads or model.heads), ("model.heads", model.heads)
            raise _either(source, *pair, "divide", "be a multiple of")
        if model.hidden_dim // model.heads % 2:
            mend = "must leave each head an even width, for rotary positions turn pairs"
            raise source.wrong("model.heads", model.heads, mend)
    if isinstance(model, sections.Custom) and not re.fullmatch(r"[\w.]+:\w+", model.kind):
        mend = 'must be a kind of model or "package.module:function"'
        raise source.wrong("model.kind", model.kind, mend)


def _data(model: sections.Model, data: sections.Data, source: Source) -> None:
    takes_tokens = isinstance(model, sections.GPT | sections.Llama)
    if isinstance(data, sections.Synthetic):
        tokens, images = data.vocabulary is not None, data.input_shape is not None
        if tokens == images or (data.classes is not None) != images:
            text = " of kind synthetic must have vocabulary, or input_shape and classes"
            raise source.error("data", text)
    else:
        tokens = not isinstance(data, sections.Images)
    if isinstance(model, sections.Custom):
        length = model.arguments.get("sequence_length")
        if tokens and (type(length) is not int or length < 1):
            text = f" must be an integer, at least 1: data of kind {data.kind} is cut by it"
            raise source.error("model.sequence_length", text)
    elif takes_tokens != tokens:
        kinds = "text, tokens or synthetic with a vocabulary" if takes_tokens else "images"
        mend = f"must be {kinds} for a model of kind {to_toml(model.kind)}"
        raise source.wrong("data.kind", data.kind, mend)


def _grains(config: "Config", source: Source) -> None:
    grains, layout = config.numerics.grains, config.layout
    if not isinstance(grains, sections.Grains):
        return
    heads, plan = _heads(config), _plan(config, layout)
    mend = fit.lines(plan, fit.nearest(plan, heads))
    if grains.data > config.train.batch:
        pair = ("numerics.grains.data", grains.data), ("train.batch", config.train.batch)
        raise _either(source, *pair, "be at most", "be at least", mend)
    for axis, size in (("data", layout.data or 1), ("tensor", layout.tensor)):
        if (leaves := getattr(grains, axis)) < size:
            pair = (f"numerics.grains.{axis}", leaves), (f"layout.{axis}", size)
            raise _either(source, *pair, "be at least", "be at most", mend)
    if any(count % grains.tensor for _, count in heads):
        text = f"must divide the model's {heads[0][1]} heads of keys and values: {mend}"
        raise source.wrong("numerics.grains.tensor", grains.tensor, text)


def _plan(config: "Config", layout: sections.Layout) -> fit.Plan:
    grains, batch, data = config.numerics.grains, config.train.batch, layout.data or 1
    if isinstance(grains, sections.Grains):
        found = grains.data, grains.tensor
    elif grains == "layout":
        found = data, layout.tensor
    else:
        found = auto_grains_of((count for _, count in _heads(config)), batch)
    return fit.Plan(data, layout.tensor, layout.pipeline, batch, found)


def _heads(config: "Config") -> list[tuple[str, int]]:
    """What the tensor grains must divide, as far as the config tells."""
    model = _with_heads(config.model)
    return [("the model", getattr(model, "kv_heads", None) or model.heads)] if model else []


def _with_heads(model: sections.Model) -> sections.GPT | sections.Llama | sections.ViT | None:
    return model if isinstance(model, sections.GPT | sections.Llama | sections.ViT) else None
