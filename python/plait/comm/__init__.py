"""Communicators: collectives over ranks with the same bits on every transport."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.comm.after import Norm, Normed
    from plait.comm.communicator import Communicator
    from plait.comm.tree import Leaves
    from plait.comm.work import Work

__all__ = ["Communicator", "Leaves", "Norm", "Normed", "Work"]

# Loaded at first use: the tree and the launcher's variables are for programs without numpy too.
_LAZY = {
    "Communicator": "communicator", "Leaves": "tree", "Norm": "after", "Normed": "after",
    "Work": "work",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'plait.comm' has no attribute {name!r}")
    return getattr(import_module(f"plait.comm.{_LAZY[name]}"), name)
