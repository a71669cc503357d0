"""Arrays of other libraries: taken without a copy, given back as they came."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import fake_cupy
import ml_dtypes
import numpy as np
import pytest
from fake_device import cpu_kernels, device
from foreign_array import Other

import plait
from plait import backend
from plait.backend.dlpack import Foreign
from plait.comm.alone import Alone
from plait.comm.for_device import device_communicator
from plait.optim import SGD


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "u2", "i4", "i8", "?", "c8"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4), (3, 0, 2)])
def test_the_same_memory(dtype: str, shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, dtype)
    found = backend.from_dlpack(Other(x))
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert found.flags.c_contiguous
    found[...] = 1
    assert (x == 1).all()


@pytest.mark.parametrize("cut", [np.s_[::2], np.s_[:, 1:3], np.s_[::-1, ::3], np.s_[1:1]])
def test_strides(cut: Any) -> None:
    x = np.arange(48, dtype=np.int32).reshape(6, 8)
    found = backend.from_dlpack(Other(x[cut]))
    assert found.tolist() == x[cut].tolist()
    assert found.strides == x[cut].strides


def test_bfloat16() -> None:
    x = np.array([1.5, -2.25, 3e38], ml_dtypes.bfloat16)
    found = backend.from_dlpack(Other(x.view(np.uint16), code=4))
    assert found.dtype == x.dtype
    assert found.tobytes() == x.tobytes()
    found[0] = 7
    assert x[0] == 7


def test_types_that_numpy_has_not() -> None:
    with pytest.raises(ValueError, match="DLPack's type 3 with 16 bits x 1, which"):
        backend.from_dlpack(Other(np.zeros(2, np.uint16), code=3))


def test_it_is_given_back_with_the_last_view() -> None:
    x = np.arange(8.0)
    owner = weakref.ref(x.base if x.base is not None else x)
    found = backend.from_dlpack(Other(x))
    view = found[2:4]
    del x, found
    gc.collect()
    assert owner() is not None
    assert view.tolist() == [2, 3]
    del view
    gc.collect()
    assert owner() is None


def test_a_capsule_is_read_once() -> None:
    capsule = np.zeros(3).__dlpack__()
    Foreign(capsule)
    with pytest.raises(ValueError, match="incorrect name"):
        Foreign(capsule)


def test_read_only() -> None:
    x = np.zeros(3)
    x.flags.writeable = False
    with pytest.raises(BufferError):
        backend.from_dlpack(Other(x))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            (2, 0),
            r'CUDA device 0, and the backend in use is the CPU\'s: call plait.backend.use\("cu',
        ),
        ((10, 0), "device type 10: needed are the host's or CUDA's"),
    ],
)
def test_memory_that_is_not_here(where: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backend.from_dlpack(Other(np.zeros(3), where=where))


def test_on_a_device() -> None:
    """Of this process's device, after what its library has started; no other device's."""
    with device(cpu_kernels()):
        backend.use("cuda")
        x = Other(np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2], where=(2, 0))
        found = backend.from_dlpack(x)
        assert x.streams == [backend.stream()]
        assert backend.on_device(found)
        assert backend.to_host(found).tolist() == x.array.tolist()
        with pytest.raises(ValueError, match="CUDA device 1; this process works on 0"):
            backend.from_dlpack(Other(np.zeros(3), where=(2, 1)))


def test_collectives_of_one_rank() -> None:
    comm, x, out = Alone(), Other(np.arange(3.0)), Other(np.zeros(3))
    assert comm.all_reduce(x, out=out) is out
    assert out.array.tolist() == [0, 1, 2]
    work = comm.all_gather(x, out=out, blocking=False)
    assert work.wait() is out
    assert comm.broadcast(x) is x
    assert comm.all_reduce(x) is x  # an identity
    comm.send(x, 0)
    assert comm.recv(out, 0) is out
    again = comm.plan("all_reduce", x, out=out)
    x.array[0] = 5
    assert again() is out
    assert out.array[0] == 5


def test_fused_functions() -> None:
    x, w = (Other(np.eye(4, dtype=np.float32) * k) for k in (2, 3))
    out = Other(np.zeros((4, 4), np.float32))
    assert plait.matmul_all_reduce(x, w, Alone(), out=out) is out
    assert (out.array == 6 * np.eye(4)).all()
    grad, weight, master = (Other(np.full(4, k, np.float32)) for k in (1, 2, 2))
    optimizer = SGD(learning_rate=0.5)
    state = {name: Other(np.zeros(4, np.float32)) for name in optimizer.state}
    done = plait.reduce_update_gather(grad, weight, master, state, Alone(), optimizer, step=1)
    assert done is weight
    assert weight.array.tolist() == [1.5] * 4


def test_a_result_on_a_device_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library's stream knows nothing of ours."""
    with device(cpu_kernels()):
        backend.use("cuda")
        comm, waits = device_communicator(Alone()), []
        monkeypatch.setattr(fake_cupy.Stream, "synchronize", lambda _: waits.append(1))
        x, out = (Other(np.arange(k, k + 3.0, dtype=np.float32), where=(2, 0)) for k in (0, 5))
        own = backend.to_device(np.zeros(3, np.float32))
        comm.all_reduce(own, out=own)
        assert not waits
        assert comm.all_reduce(x, out=out) is out
        assert len(waits) == 1
        assert out.array.tolist() == [0, 1, 2]
        work = comm.all_gather(x, out=out, blocking=False)
        assert work.wait() is out
        assert len(waits) == 2
