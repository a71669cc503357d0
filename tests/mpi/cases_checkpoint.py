"""Saving and loading over real ranks: what one layout wrote another reads."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import case

from plait import checkpoint
from plait.checkpoint import CheckpointError, Piece


def share(world: Any, size: int, *, empty: bool = False) -> list[Piece]:
    """This rank's rows of a global array, cut over `size` ranks; none for ranks beyond."""
    whole = np.arange(70, dtype=np.float32)
    cuts = [70 * r // size for r in range(size + 1)]
    if world.rank >= size:
        return []
    start, stop = cuts[world.rank], cuts[world.rank + 1]
    array = np.zeros(stop - start, np.float32) if empty else whole[start:stop].copy()
    return [Piece("weight", "master", (10, 7), start, array)]


@case(3)
def any_layout_reads_what_another_wrote(world: Any) -> None:
    folder = shared_folder(world)
    for step, (written, read) in enumerate([(1, 3), (3, 1), (2, 3), (3, 2)]):
        path = checkpoint.save(folder, step, share(world, written), world, metadata={}, keep=1)
        own = share(world, read, empty=True)
        assert checkpoint.load(path, own, world).step == step
        for found, expected in zip(own, share(world, read), strict=True):
            assert np.array_equal(found.array, expected.array)
    world.barrier()
    if world.rank == 0:
        assert [p.name for p in folder.iterdir()] == ["step-00000003"]
        shutil.rmtree(folder)


@case(3)
def a_failure_on_one_rank_is_the_same_error_on_all(world: Any) -> None:
    folder = shared_folder(world)
    checkpoint.save(folder, 1, share(world, 3), world, metadata={}, keep=1)
    pieces = share(world, 3)
    if world.rank == 2:
        pieces[0] = Piece("weight", "master", (10, 7), 69, np.zeros(5, np.float32))
    try:
        checkpoint.save(folder, 2, pieces, world, metadata={}, keep=1)
    except CheckpointError as error:
        texts = world.all_gather_object(str(error))
    assert len(set(texts)) == 1
    assert "rank 2 on host" in texts[0]
    assert "step-00000001 is as it was" in texts[0]
    world.barrier()
    if world.rank == 0:
        assert [p.name for p in folder.iterdir()] == ["step-00000001"]
        shutil.rmtree(folder)


def shared_folder(world: Any) -> Path:
    made = tempfile.mkdtemp(prefix="plait-checkpoint-") if world.rank == 0 else None
    return Path(world.broadcast_object(made))
