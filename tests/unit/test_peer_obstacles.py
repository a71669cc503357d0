"""Who can share device memory with whom, and what is said where they cannot."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from plait import backend
from plait.comm.device_memory import DeviceMemory, Process, _obstacle, _pairs

OWN = Process("a", 0, "h", 10, "pid:[1]", "0" * 32, "0000:19:00.0", "NVIDIA H200", 1 << 20)
PEER = replace(OWN, key="b", pid=11, uuid="1" * 32, bus="0000:8b:00.0")
MIG = "NVIDIA H200 MIG 1g.18gb"


@pytest.mark.parametrize(
    ("changes", "reaches", "before", "hint"),
    [
        ({}, 1, "", ""),
        ({"uuid": OWN.uuid, "bus": OWN.bus}, 0, "", ""),  # one GPU needs no access to itself
        ({"pid": 10}, 1, "they are two ranks of one process", ""),
        ({"pid": 10, "host": "other"}, 1, "", ""),
        ({}, 0, "no peer access between devices 0000:19:00.0 and 0000:8b:00.0", ""),
        ({}, -1, "", "their GPUs are hidden from each other (--gpus-per-task hides peers"),
        ({"namespace": "pid:[2]"}, 1, "", "they are in two PID namespaces (start their containers"),
        ({"namespace": "pid:[2]"}, -1, "", "they are in two PID namespaces (start their contai"),
        ({"name": MIG}, 0, f"NVIDIA H200 and {MIG} are parts of a GPU (MIG), which share no", ""),
    ],
)
def test_obstacles(
    changes: dict[str, Any], reaches: int, before: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known before is not tried; where only the attempt can tell, its error gets a hint."""
    kernels = SimpleNamespace(reaches_device=lambda bus: reaches)
    monkeypatch.setattr(backend, "kernels", kernels)
    found = _obstacle(OWN, replace(PEER, **changes))
    assert found[0].startswith(before)
    assert found[1].startswith(hint)
    assert [bool(text) for text in found] == [bool(before), bool(hint)]


def test_one_cause_is_told_once() -> None:
    told = [{1: "", 2: "far", 3: "far"}, {0: "", 2: "far", 3: ""}, {0: "", 1: "", 3: "odd"}, {}]
    memory = SimpleNamespace(trouble=_pairs(told))
    assert set(memory.trouble) == {(0, 2), (0, 3), (1, 2), (2, 3)}  # either side is enough
    text = DeviceMemory.text.fget(memory)  # type: ignore[attr-defined]
    assert text == "ranks 0 and 2 (and 2 more pairs): far; ranks 2 and 3: odd"


def test_who_shares_a_device() -> None:
    memory = object.__new__(DeviceMemory)
    third = replace(PEER, key="c", pid=12)
    elsewhere = replace(OWN, key="d", node=1, host="i")
    memory.key, memory.trouble = "a", {}
    memory.processes = (OWN, PEER, third, elsewhere)
    memory._at = {each.key: rank for rank, each in enumerate(memory.processes)}
    assert memory.joins(["a", "b", "c"])
    assert not memory.joins(["a", "d"])  # another node
    assert not memory.joins(["a", "e"])  # of another memory
    assert not memory.crowded(["a", "d"])
    assert memory.crowded(["a", "b"])  # c uses b's device, too
    memory.trouble = {(0, 1): "far"}
    assert not memory.joins(["a", "b"])
    assert memory.joins(["a", "c"])
