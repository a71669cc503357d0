"""The sum of a gradient's touched rows has the bits of the sum of all of it."""

from __future__ import annotations

from itertools import product

import numpy as np
from engines import GPT, gpt, gpt_batch
from harness import case
from reference import RANKS, assert_same, nodes_of, tree, values
from transports import transports

from plait.comm import Communicator, Leaves
from plait.mesh import Mesh
from plait.optim import AdamW
from plait.parallel.rows import RowSum
from plait.train.engine import Engine, Settings

ROWS = 300


def leaf_of(number: int, width: int) -> np.ndarray:
    """Values of all magnitudes in some of the first rows; leaf 0 has none."""
    random = np.random.default_rng(number)
    x = np.zeros((ROWS, width), np.float32)
    rows = random.choice(ROWS // 3, (40 + number) * (number > 0), replace=False)
    x[rows] = values((len(rows), width), np.float32, seed=number)
    return x


@case((*RANKS, 6))
def rows_add_up_like_whole_arrays(world: Communicator) -> None:
    for plain, width, everywhere in product(transports(), (1, 5, 16), (False, True)):
        for count in (plain.size, plain.size + 3):
            comm = plain.with_leaves(Leaves.even(count, plain.size))
            leaves = [leaf_of(number, width) for number in range(count)]
            first, last = comm.leaves.bounds[comm.rank : comm.rank + 2]
            chains = nodes_of(leaves, first, last)
            (touched,) = np.nonzero(np.any(chains != 0, axis=(0, 2)))
            # Cuts in the middle of rows, and a rank that owns nothing.
            bounds = [rank * ROWS * width // comm.size for rank in range(comm.size + 1)]
            bounds[1:-1] = [bound + 3 for bound in bounds[1:-1]]
            if comm.size > 2:
                bounds[2] = bounds[1]
            rows = RowSum(comm, chains, touched, bounds)
            assert rows.sparse
            rows.start()
            rows.finish(everywhere)
            where = slice(None) if everywhere else slice(*bounds[comm.rank : comm.rank + 2])
            message = f"{comm.transport} {width} {everywhere} {count}"
            assert_same(chains[0].ravel()[where], tree(leaves).ravel()[where], message)


@case((2,))
def many_rows_are_summed_whole(world: Communicator) -> None:
    for comm in transports():
        chains = np.ones((1, ROWS, 3), np.float32)
        touched = np.arange(0, ROWS, 1 + comm.rank)
        assert not RowSum(comm, chains, touched, [0, ROWS, 3 * ROWS]).sparse


@case((2, 4))
def an_embedding_crosses_by_rows(world: Communicator) -> None:
    """The same gradient, whether most of its rows occur or few; and few bytes in that case."""
    sizes = {**GPT, "vocabulary": 1000}
    for zero in (0, 1):
        mesh = Mesh(world.size, grains={"data": 8}, comm=world)
        engine = Engine(gpt(**sizes), mesh, AdamW(), Settings(8, 1, precision="float32", zero=zero))
        (bucket,) = (b for b in engine.buckets if b.parameters[0].by_rows)
        p = bucket.parameters[0]
        found = []
        for dense in (False, True):
            engine.initialize()
            share = engine.share
            inputs, targets = (x[share.start : share.stop] for x in gpt_batch(8))
            if dense:
                p._touched.append(np.arange(p.local_shape[0]))
            mesh.data.reset_tally()
            engine.step(0, 0.0, inputs, targets)
            found.append(bucket.gradient.copy())
            moved = mesh.data.tally["all_to_all"][0]
            assert bool(moved) is not dense, (zero, dense, moved)
        assert np.count_nonzero(found[0])
        assert_same(found[0], found[1], f"zero {zero}")
