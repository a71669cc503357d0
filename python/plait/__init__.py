"""plait: hybrid-parallel training over MPI."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.comm import Communicator as Communicator
    from plait.comm.choose import communicator as communicator
    from plait.mesh import Mesh as Mesh
    from plait.ops.collective import matmul_all_reduce as matmul_all_reduce

__version__ = "0.1.0"

# Loaded at first use: importing plait must be quick and must not start MPI.
_LAZY = {
    "Communicator": "plait.comm",
    "communicator": "plait.comm.choose",
    "Mesh": "plait.mesh",
    "matmul_all_reduce": "plait.ops.collective",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
