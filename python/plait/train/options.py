"""From TOML tables to frozen dataclasses: every key has a type, perhaps a range, and a line of doc.

A field's annotation is its type and `option` adds the rest. A union of dataclasses is told apart
by their `kind`. What does not fit raises ConfigError: the key, where it is from, value and mend.
"""

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from plait.errors import UserError
from plait.train.toml import to_toml

Field = dataclasses.Field[Any]
REQUIRED = dataclasses.MISSING


class ConfigError(UserError):
    """A config that cannot be run; the message names key, value and mend."""


class Raw(str):
    """A value as it stands on the command line: TOML, or a bare string."""


@dataclass(frozen=True)
class Source:
    """Where keys come from: a file, but for those given on the command line."""

    file: str
    overridden: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()  # every dotted key there is, for suggestions

    def given(self, key: str) -> bool:
        """Whether the command line has it, or a part of it."""
        return any(
            f"{key}.".startswith(f"{o}.") or o.startswith(f"{key}.") for o in self.overridden
        )

    def error(self, key: str, text: str) -> ConfigError:
        """text goes on after the key."""
        place = "command line" if self.given(key) else self.file
        return ConfigError(f"{place}: {key}{text}")

    def wrong(self, key: str, value: object, mend: str) -> ConfigError:
        return self.error(key, f" = {to_toml(value)} {mend}")


def option(
    doc: str,
    default: Any = REQUIRED,
    *,
    low: float | None = None,
    above: float | None = None,
    below: float | None = None,
    unset: str = "",
) -> Any:
    """A field: low <= value, above < value < below. unset: what leaving it out (None) means."""
    metadata = {"doc": doc, "low": low, "above": above, "below": below, "unset": unset}
    return dataclasses.field(default=None if unset else default, metadata=metadata)


def fields_of(cls: type) -> dict[str, tuple[Field, Any]]:
    """name -> (field, type) of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: (field, hints[field.name]) for field in dataclasses.fields(cls)}


def members(hint: Any) -> list[Any]:
    """The alternatives of a union but None; otherwise the one type."""
    union = get_origin(hint) in (typing.Union, types.UnionType)
    return [m for m in (get_args(hint) if union else (hint,)) if m is not types.NoneType]


def kinds_of(hint: Any) -> dict[str, type]:
    """kind -> dataclass of a union of them; "" is the one for any other kind."""
    found: dict[str, type] = {}
    for member in members(hint):
        if dataclasses.is_dataclass(member) and "kind" in (fields := fields_of(member)):  # type: ignore[arg-type]
            kind = fields["kind"][1]
            found["" if kind is str else get_args(kind)[0]] = member  # type: ignore[assignment]
    return found


def from_raw(text: Raw, as_text: bool) -> Any:
    """What a value on the command line means; a bare word, or any word for a string, is text."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return str(text)
    value = found.get("value")
    if len(found) > 1 or (as_text and not isinstance(value, str)):
        return str(text)
    return value


def decode(cls: type, table: Any, source: Source, key: str = "") -> Any:
    """An instance of the dataclass from a table (a dict); key is the table's own."""
    if isinstance(table, Raw):
        table = from_raw(table, as_text=False)
    if not isinstance(table, dict):
        raise source.wrong(key, table, f"must be a table: [{key}]")
    prefix = f"{key}." if key else ""
    fields, values = fields_of(cls), {}
    for name in table:
        if name not in fields:
            raise source.error(prefix + name, f": unknown key; {_nearest(name, fields, source)}")
    for name, (field, hint) in fields.items():
        if name in table:
            values[name] = _value(hint, field, table[name], source, prefix + name)
        elif field.default is REQUIRED:
            if not any(map(dataclasses.is_dataclass, members(hint))):
                doc = field.metadata["doc"]
                raise source.error(prefix + name, f" is missing: give it a value ({doc})")
            values[name] = _value(hint, field, {}, source, prefix + name)
    return cls(**values)


def _value(hint: Any, field: Field, value: Any, source: Source, key: str) -> Any:
    alternatives = members(hint)
    if kinds_of(hint):
        return _by_kind(hint, field, value, source, key)
    if isinstance(value, Raw):
        value = from_raw(value, as_text=str in alternatives)
    tables = [member for member in alternatives if dataclasses.is_dataclass(member)]
    if tables and (len(alternatives) == 1 or isinstance(value, dict)):
        return decode(typing.cast(type, tables[0]), value, source, key)
    found = _converted(alternatives[-1], value)
    numbers = found if isinstance(found, tuple) else (found,)
    if found is None or not all(_in_range(number, field.metadata) for number in numbers):
        raise source.wrong(key, value, f"must be {describe(hint, field.metadata)}")
    return found


def _by_kind(hint: Any, field: Field, table: Any, source: Source, key: str) -> Any:
    if isinstance(table, Raw):
        table = from_raw(table, as_text=False)
    if not isinstance(table, dict):
        raise source.wrong(key, table, f"must be a table: [{key}]")
    kinds = kinds_of(hint)
    named = [kind for kind in kinds if kind]
    choice = " | ".join(named) + (' | "package.module:function"' if "" in kinds else "")
    kind = table.get("kind", getattr(field.default, "kind", None))
    if isinstance(kind, Raw):
        kind = from_raw(kind, as_text=True)
    if kind is None:
        raise source.error(f"{key}.kind", f" is missing: give {choice}")
    rest = {name: value for name, value in table.items() if name != "kind"}
    if isinstance(kind, str) and ":" in kind and "" in kinds:
        for name, value in rest.items():
            rest[name] = from_raw(value, as_text=False) if isinstance(value, Raw) else value
        return kinds[""](kind, rest)
    if kind not in named:
        raise source.wrong(f"{key}.kind", kind, f"must be {choice}{_close(kind, named)}")
    for name in rest:
        owners = [other for other in named if name in fields_of(kinds[other])]
        if owners and kind not in owners:
            text = f" is a key of kind {', '.join(owners)}, not of {kind}: remove it"
            raise source.error(f"{key}.{name}", text)
    return decode(kinds[kind], {**rest, "kind": kind}, source, key)


def _converted(hint: Any, value: Any) -> Any:
    """The value in its Python type; None where it is of another one."""
    if get_origin(hint) is Literal:
        exact = [word for word in get_args(hint) if type(word) is type(value) and word == value]
        return exact[0] if exact else None
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if not isinstance(value, (list, tuple)) or not value:
            return None
        if inner[-1] is ...:
            inner = (inner[0],) * len(value)
        items = [_converted(each, item) for each, item in zip(inner, value)]
        return None if None in items or len(inner) != len(value) else tuple(items)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        return None
    return value


def _in_range(value: Any, metadata: Mapping[str, Any]) -> bool:
    low, above, below = (metadata.get(name) for name in ("low", "above", "below"))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return (
        (low is None or value >= low)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def describe(hint: Any, metadata: Mapping[str, Any]) -> str:
    """A type and its range in words, as messages and docs/config.md have them."""
    words = []
    for member in members(hint):
        if dataclasses.is_dataclass(member):
            inside = ", ".join(f"{name} = ..." for name in fields_of(typing.cast(type, member)))
            words.append(f"{{ {inside} }}")
        elif get_origin(member) is Literal:
            words.append(" | ".join(map(to_toml, get_args(member))))
        elif get_origin(member) is tuple:
            inner = get_args(member)
            count = "" if inner[-1] is ... else f"{len(inner)} "
            words.append(f"a list of {count}{_NAMES[inner[0]][1]}")
        else:
            words.append(_NAMES[member][0])
    low, above, below = (metadata.get(name) for name in ("low", "above", "below"))
    limits = [f"at least {low:g}"] if low is not None else []
    limits += [f"above {above:g}"] if above is not None else []
    limits += [f"below {below:g}"] if below is not None else []
    return " | ".join(words) + (f", {' and '.join(limits)}" if limits else "")


_NAMES: dict[Any, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    bool: ("true or false", "true or false"),
}


def _nearest(name: str, fields: Iterable[str], source: Source) -> str:
    """The key that was meant: the same one of another table, or one that looks like it."""
    elsewhere = sorted(key for key in source.known if key.endswith(f".{name}"))
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    close = difflib.get_close_matches(name, fields, 1)
    return f"the nearest is {close[0]}" if close else f"the keys here are {', '.join(fields)}"


def _close(value: object, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(value), words, 1)
    return f"; the nearest is {close[0]}" if close else ""
