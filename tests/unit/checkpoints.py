"""Arrays, cut into pieces at random, that tests of checkpoints write and read."""

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from fake_ranks import run

from plait.checkpoint import Piece, save

BF16 = np.dtype(ml_dtypes.bfloat16)
ARRAYS: dict[tuple[str, str], tuple[tuple[int, ...], Any]] = {
    ("embedding.weight", "master"): ((37, 12), np.float32),
    ("embedding.weight", "first"): ((37, 12), np.float32),
    ("blocks.0.norm/odd@name.weight", "master"): ((12,), np.float32),
    ("blocks.0.half", "master"): ((5, 3, 2), BF16),
    ("empty", "master"): ((0, 4), np.float32),
    ("count", "buffer"): ((), np.int64),
}


def whole(name: str, kind: str) -> np.ndarray:
    shape, dtype = ARRAYS[name, kind]
    seed = [ord(c) for c in name + kind]
    return (np.random.default_rng(seed).normal(size=math.prod(shape)) * 100).astype(dtype)


def cuts(n: int, size: int, seed: int) -> list[int]:
    inner = np.random.default_rng(seed).integers(0, n + 1, size - 1)
    return [0, *sorted(inner.tolist()), n]


def pieces(rank: int, size: int, *, seed: int = 0, empty: bool = False) -> list[Piece]:
    """Rank's share under uneven cuts, some of them empty."""
    found = []
    for (name, kind), (shape, dtype) in ARRAYS.items():
        bounds = cuts(math.prod(shape), size, seed + len(name))
        start, stop = bounds[rank], bounds[rank + 1]
        data = whole(name, kind)[start:stop]
        array = np.zeros(stop - start, dtype) if empty else data
        found.append(Piece(name, kind, shape, start, array))
    return found


def saved(folder: Path, step: int = 100, size: int = 2, keep: int = 3, seed: int = 0) -> Path:
    paths = run(
        size,
        lambda comm: save(
            folder, step, pieces(comm.rank, size, seed=seed), comm, metadata={"a": [1]}, keep=keep
        ),
    )
    assert paths == [folder / f"step-{step:08d}"] * size, paths
    return paths[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
