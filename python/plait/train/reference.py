"""Every option there is, as a list and as the page docs/config.md."""

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

from plait.train.options import REQUIRED, Field, describe, fields_of, kinds_of, members
from plait.train.toml import to_toml


@dataclass(frozen=True)
class Option:
    """kind: the kind of table that has it, "" if all have; default: in TOML, or in words."""

    key: str
    kind: str
    type: str
    default: str
    doc: str


def options_of(cls: type, prefix: str = "", kind: str = "") -> list[Option]:
    """The options of a config's dataclass and of the tables in it."""
    found = []
    for name, (field, hint) in fields_of(cls).items():
        tables = [member for member in members(hint) if dataclasses.is_dataclass(member)]
        if kinds_of(hint):
            found.append(_kind(prefix + name, field, hint))
            for each, table in kinds_of(hint).items():
                if each:
                    found += options_of(table, f"{prefix}{name}.", each)
        elif len(tables) == len(members(hint)):
            found += options_of(cast(type, tables[0]), f"{prefix}{name}.")
        elif not (kind and name == "kind"):
            words = describe(hint, field.metadata), _default(field), field.metadata["doc"]
            found.append(Option(prefix + name, kind, *words))
    return found


def _kind(key: str, field: Field, hint: Any) -> Option:
    kinds = kinds_of(hint)
    words = [to_toml(kind) for kind in kinds if kind]
    if "" in kinds:
        words.append('"package.module:function"')
    default = to_toml(field.default.kind) if field.default is not REQUIRED else "required"
    return Option(f"{key}.kind", "", " | ".join(words), default, field.metadata["doc"])


def _default(field: Field) -> str:
    if field.metadata["unset"]:
        return f"left out: {field.metadata['unset']}"
    return "required" if field.default is REQUIRED else to_toml(field.default)


def markdown(cls: type, head: str) -> str:
    """A page with a table of options for every table of the config, and every kind of it."""
    groups: dict[tuple[str, str], list[Option]] = {}
    for option in options_of(cls):
        section = option.key.rpartition(".")[0]
        groups.setdefault((section, option.kind), []).append(option)
    lines = [head]
    for (section, kind), options in groups.items():
        if section:
            lines.append(f"\n## [{section}]{f' of kind {to_toml(kind)}' if kind else ''}\n")
        else:
            lines.append("\n## Top of the file\n")
        lines += ["| key | value | default | |", "|---|---|---|---|"]
        for option in options:
            name = option.key.rpartition(".")[2]
            cells = (f"`{name}`", option.type, option.default, option.doc)
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines) + "\n"
