"""The memory pool: blocks come back, nothing of a freed model stays, later steps take nothing."""

import gc
import os
import threading
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from plait import Mesh, data, models, optim
from plait.backend import POOLED, bfloat16, contiguous, copied, empty, kernels, zeros
from plait.comm.alone import Alone
from plait.train.trainer import Trainer


@pytest.fixture(autouse=True)
def _trimmed():
    gc.collect()
    kernels.trim_memory()


def use(name: str) -> int:
    return kernels.memory_use()[name]


@pytest.mark.parametrize("shape", [(POOLED,), (3, 5000, 7), (1, 1 << 16), (3 << 20,), (40 << 20,)])
@pytest.mark.parametrize("dtype", [np.float32, bfloat16, np.int64, np.bool_])
def test_arrays_are_like_numpys(shape, dtype):
    x = empty(shape, dtype)
    assert (x.shape, x.dtype, x.strides) == (shape, np.dtype(dtype), np.empty(shape, dtype).strides)
    assert x.flags.writeable
    assert x.flags.c_contiguous
    assert x.ctypes.data % 4096 == 0
    x.reshape(-1)[-1] = 1
    assert (zeros(shape, dtype) == 0).all()


def test_the_last_freed_is_the_next():
    first, second = empty(100_000), empty(100_000)
    at, calls = [x.ctypes.data for x in (first, second)], use("system_calls")
    view = first[5:]
    del first
    third = empty(100_000)
    assert third.ctypes.data not in at, "a view still has it"
    del view
    assert empty(99_999).ctypes.data == at[0]
    del second
    assert empty(100_000).ctypes.data == at[1]
    assert use("system_calls") == calls


def test_live_arrays_never_overlap():
    rng, live = np.random.default_rng(0), []
    for _ in range(600):
        if live and rng.random() < 0.45:
            x, value = live.pop(rng.integers(len(live)))
            assert (x == value).all()
        else:
            value = rng.integers(1 << 30)
            x = empty(int(rng.integers(POOLED // 8, 1 << 18)), np.int64)
            x.fill(value)
            live.append((x, value))
    assert use("used") == sum(-(-x.nbytes // 4096) * 4096 for x, _ in live) + _rounding(live)
    spans = sorted((x.ctypes.data, x.ctypes.data + x.nbytes) for x, _ in live)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


def _rounding(live):
    """At most an eighth more than asked for."""
    asked = sum(-(-x.nbytes // 4096) * 4096 for x, _ in live)
    assert asked <= use("used") <= asked * 9 / 8
    return use("used") - asked


def test_trimming_leaves_what_is_in_use():
    kept, freed, large = zeros(1 << 16), zeros(1 << 16), zeros(64 << 20)
    with_large = use("reserved")
    del large, freed
    assert use("reserved") == with_large, "kept for the next"
    kernels.trim_memory()
    assert use("reserved") <= 32 << 20
    assert (kept == 0).all()
    del kept
    assert (use("reserved"), use("used")) == (0, 0)


def test_nothing_of_a_freed_model_stays():
    layers = models.gpt(layers=2, hidden_dim=256, heads=4, vocabulary=500, sequence_length=64)
    dataset = data.synthetic(samples=64, vocabulary=500, sequence_length=64)
    before = use("reserved")
    trainer = Trainer(layers, dataset, mesh=Mesh(comm=Alone()), optimizer=optim.AdamW(), batch=16)
    next(trainer.steps(1))
    assert use("reserved") > before + (20 << 20)
    trainer.close()
    del trainer
    gc.collect()
    assert use("reserved") == before


GPT = {"layers": 2, "hidden_dim": 128, "heads": 4, "vocabulary": 1000, "sequence_length": 64}
IMAGES: dict[str, Any] = {"input_shape": (16, 16, 3), "classes": 10}


@pytest.mark.parametrize("model", ["gpt", "llama", "resnet", "vit", "mlp"])
def test_later_steps_take_nothing_from_the_system(model):
    if model in ("gpt", "llama"):
        layers = getattr(models, model)(**GPT)
        shape: dict[str, Any] = {"vocabulary": 1000, "sequence_length": 64}
    else:
        more: dict[str, dict[str, Any]] = {
            "resnet": {"blocks": (1, 1), "width": 16},
            "vit": {"layers": 2, "hidden_dim": 128, "heads": 4},
            "mlp": {"hidden_dim": 512},
        }
        layers, shape = getattr(models, model)(**IMAGES, **more[model]), IMAGES
    dataset = data.synthetic(samples=256, **shape)
    with Trainer(
        layers, dataset, mesh=Mesh(comm=Alone()), optimizer=optim.AdamW(), batch=64
    ) as trainer:
        steps = trainer.steps(8)
        for _ in range(2):
            next(steps)
        calls, used = use("system_calls"), use("used")
        tracemalloc.start()
        try:
            for _ in range(3):
                start, _ = tracemalloc.get_traced_memory()
                tracemalloc.reset_peak()
                next(steps)
                peak = tracemalloc.get_traced_memory()[1] - start
                # numpy's own arrays are traced: all but the batch itself is small ones
                assert peak < 2 * 64 * 16 * 16 * 3 * 4 + (1 << 20), f"{peak} bytes past the pool"
        finally:
            tracemalloc.stop()
        assert (use("system_calls"), use("used")) == (calls, used)


def test_threads_share_it():
    failed = []

    def work(number):
        for i in range(300):
            x = empty(POOLED + 64 * (i % 7), np.int64)
            x.fill(number)
            y = copied(x)
            del x
            if (y != number).any():
                failed.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert use("used") == 0


def test_a_forked_child_has_its_own():
    x = zeros(1 << 20)
    pid = os.fork()
    if pid == 0:
        y = zeros(1 << 20)
        y += 1
        os._exit(0 if (x == 0).all() and (y == 1).all() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert (x == 0).all()


def test_copies():
    x = np.arange(60_000, dtype=np.int32).reshape(200, 300)
    assert contiguous(x) is x
    assert (contiguous(x.T) == x.T).all()
    assert contiguous(x.T).flags.c_contiguous
    assert not np.may_share_memory(copied(x), x)


def test_more_than_there_is():
    with pytest.raises(MemoryError):
        empty(1 << 60, np.int8)
