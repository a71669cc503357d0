"""The config of a run: a TOML file and `key=value` overrides, as frozen dataclasses.

sections.py has the keys; docs/config.md is made from them by `python -m plait.train.config`.
Importing this needs neither numpy nor MPI.
"""

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plait.train import sections
from plait.train.checks import NAME, check
from plait.train.options import ConfigError, Raw, Source, decode, from_raw, option
from plait.train.reference import Option, markdown, options_of
from plait.train.toml import document, to_toml

__all__ = ["Config", "ConfigError", "compare", "dump", "load", "load_record", "options"]

RECORD = "record"  # the table that a run adds to its config.toml; it is not read back

# What may differ when a run is resumed: it does not change what a step computes, or the Trainer
# looks at it (numerics.identity). A data path is here too: what counts is the data's fingerprint,
# which the run's record keeps.
_RESUMABLE = frozenset(
    {"name", "runs_dir", "threads", "memory", "backend", "layout", "checkpoint", "evaluate"}
    | {"numerics", "data.path"}
    | {"data.held_out", "train.steps", "train.microbatch", "train.recompute", "train.schedule"}
    | {"train.sequence_parallel"}
)


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = option("the run goes to runs_dir/name", unset="the file's name")
    seed: int = option("of weights, dropout and the order of samples", 0, low=0, below=2**63)
    runs_dir: str = option("folder of all runs", "runs")
    threads: int = option("threads of a rank; 0: its share of the cores it may use", 0, low=0)
    memory: float | None = option(
        "GiB a rank may use", above=0, unset="its share of the host, or of its GPU"
    )
    backend: Literal["auto", "cpu", "cuda"] = option(
        "what computes; auto: the GPU, where every rank has one", "auto"
    )
    model: sections.Model = option("what is trained")
    data: sections.Data = option("what it is trained on")
    train: sections.Train = option("how it is trained")
    optimizer: sections.AdamW | sections.SGD = option("how weights change", sections.AdamW())
    layout: sections.Layout = option("the mesh", sections.Layout())
    numerics: sections.Numerics = option("the order of additions", sections.Numerics())
    checkpoint: sections.Checkpoint = option("what is saved", sections.Checkpoint())
    evaluate: sections.Evaluate = option("held-out data", sections.Evaluate())


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """The config in a TOML file, with overrides such as "train.steps=100" or "layout=2x2x1".

    Values of overrides are TOML; bare words are strings. Raises ConfigError for a missing or
    malformed file, and for keys, types and values that are not allowed.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            tables = tomllib.loads(file.read().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    tables.pop(RECORD, None)
    known = frozenset(each.key for each in options())
    overridden = frozenset(each.partition("=")[0].strip() for each in overrides)
    source = Source(path, overridden, known)
    if "name" not in tables and "name" not in overridden:
        tables["name"] = _named_after(path)
    if isinstance(tables.get("layout"), str):
        tables["layout"] = _sizes(tables["layout"], Source(path))
    for override in overrides:
        _apply(tables, override, source)
    config: Config = decode(Config, tables, source)
    check(config, source)
    return config


def dump(config: Config, record: Mapping[str, Any] | None = None) -> str:
    """TOML that loads to the same config. record: what else a run keeps, as a last table."""
    tables = _tables(config)
    return document(tables | ({RECORD: record} if record else {}))


def load_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a run kept beside its config, as given to dump. {} if there is nothing."""
    with open(path, "rb") as file:
        record: dict[str, Any] = tomllib.load(file).get(RECORD, {})
    return record


def options() -> list[Option]:
    """Every key, with its type, default and meaning."""
    return options_of(Config)


def compare(a: Config, b: Config) -> list[str]:
    """The keys in which two configs differ so that one cannot resume the other's run."""
    first, second = _flat(_tables(a)), _flat(_tables(b))
    differing = sorted(
        key for key in first.keys() | second.keys() if first.get(key) != second.get(key)
    )
    return [
        key
        for key in differing
        if key not in _RESUMABLE and key.partition(".")[0] not in _RESUMABLE
    ]


def _named_after(path: str) -> str:
    stem = Path(path).stem
    if not NAME.fullmatch(stem):
        fitting = re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-") or "run"
        raise ConfigError(
            f"{path}: the run cannot be named {to_toml(stem)} after this file, for names are "
            f"letters, digits, dots, - and _: give name, such as name={fitting}"
        )
    return stem


def _apply(tables: dict[str, Any], override: str, source: Source) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"command line: {override!r} must be key=value, such as train.steps=100")
    value: Any = Raw(text.strip())
    if names == ["layout"] and isinstance(from_raw(value, as_text=False), str):
        value = {**tables.get("layout", {}), **_sizes(from_raw(value, as_text=True), source)}
    table = tables
    for depth, name in enumerate(names[:-1], 1):
        if isinstance(table.get(name), Raw):
            table[name] = from_raw(table[name], as_text=False)
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            above = ".".join(names[:depth])
            raise source.error(key, f": {above} = {to_toml(table)} is no table; give {above} whole")
    table[names[-1]] = value


def _sizes(text: str, source: Source) -> dict[str, int]:
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not found:
        mend = 'must be data x tensor x pipeline, such as "2x2x1", or a table of them'
        raise source.wrong("layout", text, mend)
    return dict(zip(("data", "tensor", "pipeline"), map(int, found.groups())))


def _tables(config: Config) -> dict[str, Any]:
    """The config as TOML has it; what is unset is left out."""
    tables: dict[str, Any] = _plain(config)
    return tables


def _plain(value: Any) -> Any:
    if isinstance(value, sections.Custom):
        return {"kind": value.kind, **value.arguments}
    if not dataclasses.is_dataclass(value):
        return value
    pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    return {name: _plain(item) for name, item in pairs if item is not None}


def _flat(tables: dict[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in tables.items() if not isinstance(value, dict)}
    for section, table in tables.items():
        if isinstance(table, dict):
            flat |= {f"{section}.{name}": value for name, value in table.items()}
    return flat


_PAGE = """\
# Config: every key

<!-- made by `python -m plait.train.config`; change python/plait/train/sections.py instead -->

A run is described by a TOML file; `plait train FILE key=value ...` overrides keys of it, with dots
(`train.steps=100`). `layout = "2x2x1"` stands for the table of data x tensor x pipeline. An unknown
key is refused. The run's folder keeps the whole config in `config.toml`, with a table `[record]`
about the run, which is not read back.

A model of kind `"package.module:function"` is a function of yours that returns a list of layers;
all other keys of `[model]` are its keyword arguments."""

if __name__ == "__main__":
    print(markdown(Config, _PAGE), end="")
