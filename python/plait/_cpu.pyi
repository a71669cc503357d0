"""The compiled module: its functions and shapes are in csrc/core/ops.hpp."""

from typing import Any

def __getattr__(name: str) -> Any: ...
