"""Which backend this process has taken; backend.use changes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from plait.backend import host
from plait.backend.cuda import Cuda

# The same object always: functions of the module in use are put into it.
kernels: Any = SimpleNamespace(**vars(host.kernels))
cuda: Cuda | None = None  # None: the CPU's
