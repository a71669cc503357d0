# The extension module; csrc/core/ops.hpp says what is in it.
from typing import Any

def __getattr__(name: str) -> Any: ...
