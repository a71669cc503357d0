"""What plait writes as TOML reads back as the same values."""

import tomllib
from typing import Any

import pytest

from plait.train.toml import document, to_toml


@pytest.mark.parametrize(
    "value",
    [
        "",
        'a"b\\c\n\t\x7f\x00',
        "日本 \U0001f600",
        True,
        -3,
        1e-300,
        6e22,
        0.1,
        [1, [2.5]],
        {"a b": {}},
    ],
)
def test_toml_values_round_trip(value: Any) -> None:
    assert tomllib.loads(f"x = {to_toml(value)}")["x"] == value


def test_toml_documents() -> None:
    tables: dict[str, Any] = {"a": 1, "t": {"b": [], "odd key": "x"}, "z": 2.0, "empty": {}}
    assert tomllib.loads(document(tables)) == tables
    assert document({"a": 1, "t": {"b": 2}}) == "a = 1\n\n[t]\nb = 2\n"
    with pytest.raises(TypeError, match="NoneType"):
        to_toml(None)
