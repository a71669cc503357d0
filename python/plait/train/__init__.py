"""Training: the Trainer, and what the command line calls. Loaded on use, so that configs need no
MPI."""

from typing import Any

_HOME = {"Trainer": "trainer", "Step": "results", "Evaluation": "results", "Settings": "engine"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOME:
        return getattr(import_module(f"plait.train.{_HOME[name]}"), name)
    raise AttributeError(f"module 'plait.train' has no attribute {name!r}")
