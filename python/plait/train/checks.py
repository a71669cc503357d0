"""What one key alone cannot tell: whether the tables of a config fit together."""

import re
from typing import TYPE_CHECKING

from plait.train import sections
from plait.train.options import Source
from plait.train.toml import to_toml

if TYPE_CHECKING:
    from plait.train.config import Config


def check(config: "Config", source: Source) -> None:
    """Raises ConfigError for the first thing that does not fit."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", config.name):
        raise source.wrong("name", config.name, "must be letters, digits, dots, - and _: a folder")
    _model(config.model, source)
    _data(config.model, config.data, source)
    train = config.train
    if train.microbatch is not None and train.microbatch > train.batch:
        mend = f"must be at most train.batch = {train.batch}"
        raise source.wrong("train.microbatch", train.microbatch, mend)
    _grains(config, source)


def _model(model: sections.Model, source: Source) -> None:
    attention = _with_heads(model)
    if attention is not None and attention.hidden_dim % attention.heads:
        mend = f"must divide model.hidden_dim = {attention.hidden_dim}"
        raise source.wrong("model.heads", attention.heads, mend)
    if isinstance(model, sections.Llama):
        if model.heads % (model.kv_heads or model.heads):
            mend = f"must divide model.heads = {model.heads}"
            raise source.wrong("model.kv_heads", model.kv_heads, mend)
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
    if grains.data > config.train.batch:
        mend = f"must be at most train.batch = {config.train.batch}"
        raise source.wrong("numerics.grains.data", grains.data, mend)
    for axis, size in (("data", layout.data or 1), ("tensor", layout.tensor)):
        if getattr(grains, axis) < size:
            mend = f"must be at least layout.{axis} = {size}"
            raise source.wrong(f"numerics.grains.{axis}", getattr(grains, axis), mend)
    attention = _with_heads(config.model)
    heads = attention and (getattr(attention, "kv_heads", None) or attention.heads)
    if heads and heads % grains.tensor:
        mend = f"must divide the model's {heads} heads of keys and values"
        raise source.wrong("numerics.grains.tensor", grains.tensor, mend)


def _with_heads(model: sections.Model) -> sections.GPT | sections.Llama | None:
    return model if isinstance(model, sections.GPT | sections.Llama) else None
