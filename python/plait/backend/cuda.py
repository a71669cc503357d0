"""The CUDA backend of this process: CuPy's arrays, plait._cuda's kernels, one device."""

from __future__ import annotations

import importlib
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.errors import UserError

LEAST = (8, 0)  # compute capability


@dataclass(frozen=True)
class Cuda:
    """cupy: the module; kernels: plait._cuda; device: its number among those that are visible;
    stream: everything runs on it."""

    cupy: Any
    kernels: Any
    device: int
    name: str
    stream: Any

    def view(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: Any,
        owner: object,
        strides: tuple[int, ...] | None = None,
        reach: int | None = None,
    ) -> Any:
        """An array over memory of a device, which owner keeps; reach: its bytes, where it has
        strides."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize if reach is None else reach
        memory = self.cupy.cuda.UnownedMemory(address, size, owner, self.device)
        start = self.cupy.cuda.MemoryPointer(memory, 0)
        return self.cupy.ndarray(shape, kind, memptr=start, strides=strides)


def connect(local_rank: int) -> Cuda:
    """Takes visible device `local_rank` modulo their number. UserError says in one line what is
    missing, and what to install."""
    # Loaded at its first use, a kernel would wait behind one that waits for a peer.
    os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")
    # With fewer queues a stream that must end such a wait could queue behind it.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    try:
        kernels: Any = importlib.import_module("plait._cuda")
    except ModuleNotFoundError:
        raise UserError(
            'backend = "cuda": this plait was built for the CPU only; build it with CUDA 13: '
            "pip install --no-binary plait -C cmake.define.PLAIT_CUDA=ON plait[cuda13]"
        ) from None
    driver, runtime = kernels.driver_version(), kernels.runtime_version()
    if driver == 0:
        raise UserError(
            'backend = "cuda": there is no NVIDIA driver here (libcuda.so.1 cannot be loaded); '
            'take backend = "cpu", or a host with a GPU'
        )
    if driver < runtime // 1000 * 1000:
        raise UserError(
            f'backend = "cuda": the driver knows CUDA {_version(driver)}, plait was built for '
            f"{_version(runtime)}: install a driver of CUDA {runtime // 1000} (580 or later for 13)"
        )
    extra = f"cuda{runtime // 1000}"
    try:
        cupy: Any = importlib.import_module("cupy")
    except Exception as error:  # CuPy raises others too where its libraries do not fit
        raise UserError(
            f'backend = "cuda" needs CuPy 14 or later, which cannot be imported ({error}): '
            f"pip install plait[{extra}]"
        ) from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        if "NoDevice" not in str(error):
            raise UserError(
                f'backend = "cuda": CuPy {cupy.__version__} does not work with this driver (CUDA '
                f"{_version(driver)}): {error}; its CUDA may be another: pip install plait[{extra}]"
            ) from None
        count = 0
    if int(cupy.__version__.split(".")[0]) < 14:
        raise UserError(
            f'backend = "cuda" needs CuPy 14 or later for bfloat16, found {cupy.__version__}: '
            f"pip install plait[{extra}]"
        )
    if count == 0:
        raise UserError(
            'backend = "cuda": there is a driver but no visible device: look at '
            "CUDA_VISIBLE_DEVICES, or ask the scheduler for one (srun --gpus-per-node=1)"
        )
    device = local_rank % count
    properties = cupy.cuda.runtime.getDeviceProperties(device)
    name, found = properties["name"].decode(), (properties["major"], properties["minor"])
    if found < LEAST:
        raise UserError(
            f'backend = "cuda": {name} has compute capability {found[0]}.{found[1]}, needed is '
            f"{LEAST[0]}.{LEAST[1]} (A100 or later)"
        )
    try:
        cupy.cuda.Device(device).use()
        stream = cupy.cuda.Stream(non_blocking=True)  # the default one cannot be recorded
    except Exception as error:
        raise UserError(
            f'backend = "cuda": {name}, device {device}, cannot be used: {error}; another process '
            "may have it for itself, or all of its memory (nvidia-smi)"
        ) from None
    stream.use()
    kernels.set_stream(stream.ptr)
    return Cuda(cupy, kernels, device, name, stream)


def disconnect(cuda: Cuda) -> None:
    """Leaves the stream to its arrays."""
    cuda.stream.synchronize()
    cuda.cupy.cuda.Stream.null.use()
    cuda.kernels.set_stream(0)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
