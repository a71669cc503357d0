"""Writing TOML, which the standard library only reads: what a config holds, and it reads back."""

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(value: object) -> str:
    """One value, on one line. Raises TypeError for what TOML has no word for."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, Mapping):
        pairs = [f"{_key(name)} = {to_toml(item)}" for name, item in value.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    raise TypeError(f"TOML has no {type(value).__name__}: {value!r}")


def document(tables: Mapping[str, Any]) -> str:
    """A document whose top-level mappings are tables, [name], after the plain keys."""
    plain = [
        f"{_key(name)} = {to_toml(value)}\n"
        for name, value in tables.items()
        if not isinstance(value, Mapping)
    ]
    parts = ["".join(plain)]
    for name, table in tables.items():
        if isinstance(table, Mapping):
            lines = [f"{_key(key)} = {to_toml(value)}\n" for key, value in table.items()]
            parts.append(f"[{_key(name)}]\n{''.join(lines)}")
    return "\n".join(parts)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else to_toml(name)
