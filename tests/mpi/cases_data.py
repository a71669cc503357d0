"""Data over real ranks: read once, the same batches everywhere, files seen or sent, errors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from harness import case

from plait import data
from plait.comm import Communicator
from plait.data.bundle import Bundle
from plait.errors import UserError

RANKS = (1, 3)


@contextmanager
def folder(world: Communicator, own_cache: bool) -> Iterator[Path]:
    """A folder that all ranks share, with a cache in it: one of all, or one of each rank that no
    other rank sees."""
    root = Path(world.broadcast_object(tempfile.mkdtemp()))
    cache = root / (f"cache{world.rank}" if own_cache else "cache")
    seen = Bundle.visible

    def visible(bundle: Bundle) -> bool:
        paths = [Path(path) for path, _ in bundle.files.values()]
        return seen(bundle) and (not own_cache or all(p.is_relative_to(cache) for p in paths))

    with (
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(cache)}),
        mock.patch.object(Bundle, "visible", visible),
    ):
        yield root


def same_everywhere(world: Communicator, dataset: data.Dataset) -> None:
    indices = np.array([0, dataset.samples - 1], np.int64)
    mine = [x.tobytes() for x in dataset.batch(indices)]
    assert world.all_gather_object((mine, dataset.fingerprint)) == [(mine, dataset.fingerprint)] * (
        world.size
    )


@case(RANKS)
def text_is_tokenised_once(world: Communicator) -> None:
    for own_cache in (False, True):
        with folder(world, own_cache) as root:
            if world.rank == 0:
                (root / "a.txt").write_text("some words, some more words\n" * 300)
            text = data.text(root / "a.txt", vocabulary=280, sequence_length=8)
            held_out = text.held_out
            assert held_out is not None
            text.prepare(world)
            held_out.prepare(world)
            same_everywhere(world, text)
            same_everywhere(world, held_out)
            assert text.decode(text.encode("more words")) == "more words"
            world.barrier()
            caches = sorted(path.name for path in root.glob("cache*"))
            assert len(caches) == (world.size if own_cache else 1)


@case(RANKS)
def images_and_tokens_are_sent_to_ranks_that_do_not_see_them(world: Communicator) -> None:
    with folder(world, own_cache=True) as root:
        if world.rank == 0:
            rng = np.random.default_rng(0)
            x, y = rng.integers(0, 256, (50, 5, 4), np.uint8), rng.integers(0, 3, 50)
            np.savez(root / "a.npz", x=x, y=y)
            (root / "cache0").mkdir()
            np.arange(1000, dtype=np.uint16).tofile(root / "cache0" / "a.bin")
        images = data.images(root / "a.npz")
        images.prepare(world)
        same_everywhere(world, images)
        path = root / "cache0" / "a.bin"
        tokens = data.tokens(path, vocabulary=1000, sequence_length=7, dtype="uint16")
        tokens.prepare(world)
        same_everywhere(world, tokens)


def refusal(world: Communicator, dataset: data.Dataset) -> str:
    try:
        dataset.prepare(world)
    except UserError as error:
        return str(error)
    raise AssertionError("nothing was refused")


@case(RANKS)
def errors_are_said_by_every_rank(world: Communicator) -> None:
    found = refusal(world, data.text("/nowhere/a.txt", vocabulary=300, sequence_length=8))
    assert "/nowhere/a.txt" in found
    assert world.all_gather_object(found) == [found] * world.size
    x = np.ones((4, 2), np.float32)
    x[2, 1] = np.nan if world.rank == world.size - 1 else 1
    assert "x: row 2 is not finite" in refusal(world, data.arrays(x, x))


@case((2, 3))
def arrays_that_differ_between_ranks_are_refused(world: Communicator) -> None:
    found = refusal(world, data.arrays(np.full((4, 2), world.rank), np.arange(4)))
    assert "rank 1 passed other arrays than rank 0" in found
