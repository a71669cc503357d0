"""plait: hybrid-parallel training over MPI."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.comm import Communicator as Communicator
    from plait.comm.choose import communicator as communicator
    from plait.mesh import Mesh as Mesh
    from plait.ops.collective import all_gather_matmul as all_gather_matmul
    from plait.ops.collective import matmul_all_reduce as matmul_all_reduce
    from plait.ops.collective import matmul_reduce_scatter as matmul_reduce_scatter
    from plait.parallel.update import reduce_update_gather as reduce_update_gather

__version__ = "0.1.0"

# Loaded at first use: importing plait must be quick and must not start MPI.
_LAZY = {
    "Communicator": "plait.comm",
    "communicator": "plait.comm.choose",
    "Mesh": "plait.mesh",
    "all_gather_matmul": "plait.ops.collective",
    "matmul_all_reduce": "plait.ops.collective",
    "matmul_reduce_scatter": "plait.ops.collective",
    "reduce_update_gather": "plait.parallel.update",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
