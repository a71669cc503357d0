"""Sums, max and min on every transport: the bits of the plain tree, for all types and odd sizes."""

from __future__ import annotations

from itertools import product

import numpy as np
from harness import case
from reference import (
    FLOATS,
    INTEGERS,
    RANKS,
    SIZED,
    SIZES,
    UFUNCS,
    assert_same,
    finish,
    nodes_of,
    of_ranks,
    skewed,
    tree,
    values,
)
from transports import transports

from plait.comm import Communicator, Leaves


@case((*RANKS, 6, 8))
def all_reduce_adds_floats_in_the_tree(world: Communicator) -> None:
    for comm, n, dtype, blocking in product(transports(), SIZES, FLOATS, (True, False)):
        x = of_ranks((n,), dtype, comm.size)
        found = finish(comm.all_reduce(x[comm.rank].copy(), blocking=blocking))
        assert_same(found, tree(x).astype(dtype), f"{comm.transport} {n} {dtype} {blocking}")


@case(RANKS)
def all_reduce_of_float64(world: Communicator) -> None:
    for comm, n in product(transports(), (5, 3001)):
        x = [value.astype(np.float64) / 3 for value in of_ranks((n,), np.float32, comm.size)]
        found = comm.all_reduce(x[comm.rank].copy())
        assert_same(found, tree(x, np.float64), f"{comm.transport} {n}")


@case(RANKS)
def all_reduce_of_integers(world: Communicator) -> None:
    sized = [(n, dtype) for n, dtype in SIZED if dtype in INTEGERS]
    for comm, (n, dtype), op in product(transports(), sized, UFUNCS):
        x = of_ranks((n,), dtype, comm.size)
        found = finish(comm.all_reduce(x[comm.rank].copy(), op, blocking=False))
        assert_same(found, UFUNCS[op].reduce(x, dtype=dtype), f"{comm.transport} {op} {n} {dtype}")


@case(RANKS)
def max_and_min_of_floats(world: Communicator) -> None:
    """NaN of any rank wins, -0 is below 0, and every rank has the same bits."""
    for comm, dtype, op in product(transports(), FLOATS, ("max", "min")):
        x = of_ranks((1000,), dtype, comm.size)
        for rank, value in enumerate(x):
            value[:3] = -0.0 if rank else 0.0
            value[3 + rank] = np.nan
            value[20] = np.inf if rank == comm.size - 1 else -np.inf
        found = comm.all_reduce(x[comm.rank].copy(), op)
        wanted = UFUNCS[op].reduce(x)
        assert np.array_equal(found, wanted, equal_nan=True), (comm.transport, dtype, op)
        negative_zero = op == "min" and comm.size > 1
        assert np.signbit(found[:3]).tolist() == [negative_zero] * 3
        bits = comm.all_gather(found[None].view(np.uint8))
        assert all(bits[0].tobytes() == row.tobytes() for row in bits)


@case(RANKS)
def all_reduce_into_arrays_of_all_kinds(world: Communicator) -> None:
    for comm, n in product(transports(), (9, 60_000)):
        x = of_ranks((n,), np.float32, comm.size)
        wanted, own = tree(x), x[comm.rank]
        in_place = own.copy()
        assert comm.all_reduce(in_place, out=in_place) is in_place
        assert_same(in_place, wanted, "in place")
        wide = np.zeros((n, 2), np.float32)
        strided_out = wide[:, 1]
        assert comm.all_reduce(own, out=strided_out) is strided_out
        assert_same(strided_out, wanted, "strided out")
        assert not wide[:, 0].any()
        wide[:, 0] = own
        assert_same(comm.all_reduce(wide[:, 0]), wanted, "strided in")
        assert_same(comm.all_reduce(own[::-1])[::-1], wanted, "reversed")
        overlap = np.concatenate([own, [0]]).astype(np.float32)
        assert_same(comm.all_reduce(overlap[:-1], out=overlap[1:]), wanted, "overlapping")
        scalar = comm.all_reduce(own[3:4].reshape(()))
        assert scalar.shape == ()
        assert_same(scalar, wanted[3], "scalar")
        assert_same(own, values((n,), np.float32, comm.rank + 1), "the input")


LEAVES = {  # leaf counts, and cuts that a rank count of its own would never choose
    1: (Leaves.even(1, 1), Leaves.even(8, 1), Leaves.even(11, 1)),
    2: (Leaves.even(2, 2), Leaves.even(8, 2), Leaves.even(11, 2), Leaves(8, (0, 1, 8))),
    3: (Leaves.even(3, 3), Leaves.even(8, 3), Leaves.even(12, 3), Leaves(16, (0, 7, 8, 16))),
    4: (Leaves.even(4, 4), Leaves.even(7, 4), Leaves.even(64, 4), Leaves(6, (0, 1, 2, 3, 6))),
    6: (Leaves.even(6, 6), Leaves.even(8, 6), Leaves.even(13, 6)),
    8: (Leaves.even(8, 8), Leaves.even(12, 8)),
}
SHAPES = ((0,), (1,), (7,), (3, 5), (2, 1, 6), (0, 4), (4, 0), (2, 9, 16), (20_003,), (32, 20, 31))


@case((*RANKS, 6, 8))
def all_reduce_nodes(world: Communicator) -> None:
    found = transports()
    for leaves, shape in product(LEAVES[world.size], SHAPES):
        x = of_ranks(shape, np.float32, leaves.count)
        whole = tree(x)
        nodes = nodes_of(x, leaves.bounds[world.rank], leaves.bounds[world.rank + 1])
        bias = values(shape[-1:], np.float32, 99)
        single, half, small = FLOATS
        asked = ((single, None), (single, bias), (half, bias), (small, None))
        for base, (dtype, added) in product(found, asked):
            comm, blocking = base.with_leaves(leaves), added is None
            got = finish(comm.all_reduce_nodes(nodes, bias=added, dtype=dtype, blocking=blocking))
            wanted = (whole if added is None else whole + added).astype(dtype)
            assert_same(got, wanted, f"{comm.transport} {leaves} {shape} {dtype} {blocking}")


@case((*RANKS, 6, 8))
def reduce_scatter_nodes(world: Communicator) -> None:
    found = transports()
    for leaves, shape in product(LEAVES[world.size], SHAPES):
        x = of_ranks(shape, np.float32, leaves.count)
        whole = tree(x)
        nodes = nodes_of(x, leaves.bounds[world.rank], leaves.bounds[world.rank + 1])
        bias = values(shape[-1:], np.float32, 99)
        for axis in range(-1, len(shape) - 1):
            n = shape[axis]
            even = [rank * n // world.size for rank in range(world.size + 1)]
            skew = skewed(n, world.size)
            for dtype, added, bounds in (
                (FLOATS[0], None, None),
                (FLOATS[0], bias, skew),
                (FLOATS[1], None, skew),
                (FLOATS[1], bias, None),
                (FLOATS[2], bias, skew),
            ):
                cut = bounds or even
                own = range(cut[world.rank], cut[world.rank + 1])
                wanted = (whole if added is None else whole + added).take(own, axis).astype(dtype)
                for base in found:
                    comm, options = base.with_leaves(leaves), {"axis": axis, "bounds": bounds}
                    work = comm.reduce_scatter_nodes(
                        nodes, bias=added, dtype=dtype, blocking=added is None, **options
                    )
                    what = f"{comm.transport} {leaves} {shape} {options} {dtype} {added is None}"
                    assert_same(finish(work), wanted, what)


@case(RANKS)
def reduce_scatter_of_ranks(world: Communicator) -> None:
    for comm, dtype, op in product(transports(), (*FLOATS, *INTEGERS), UFUNCS):
        x = of_ranks((5, 21, 3), dtype, comm.size)
        floats_added = op == "sum" and dtype in FLOATS
        whole = tree(x).astype(dtype) if floats_added else UFUNCS[op].reduce(x, dtype=dtype)
        for axis in range(3):
            n = x[0].shape[axis]
            bounds = [rank * n // comm.size for rank in range(comm.size + 1)]
            out = np.empty_like(whole.take(range(bounds[comm.rank], bounds[comm.rank + 1]), axis))
            found = finish(
                comm.reduce_scatter(x[comm.rank].copy(), axis=axis, op=op, out=out, blocking=False)
            )
            assert found is out
            wanted = whole.take(range(bounds[comm.rank], bounds[comm.rank + 1]), axis)
            assert_same(found, wanted, f"{comm.transport} {op} {dtype} {axis}")


@case(RANKS)
def a_reduction_may_write_over_its_input(world: Communicator) -> None:
    for base in transports():
        comm = base.with_leaves(Leaves.even(8, base.size))
        x = of_ranks((6, 5000), np.float32, 8)
        wanted = tree(x)
        bounds = [rank * 5000 // comm.size for rank in range(comm.size + 1)]
        start, stop = bounds[comm.rank], bounds[comm.rank + 1]
        leaves = comm.leaves.bounds
        nodes = nodes_of(x, leaves[comm.rank], leaves[comm.rank + 1])
        out = nodes[0, :, start:stop]
        found = comm.reduce_scatter_nodes(nodes, axis=1, out=out)
        assert_same(found, wanted[:, start:stop], f"{comm.transport} reduce_scatter_nodes")
        nodes = nodes_of(x, leaves[comm.rank], leaves[comm.rank + 1])
        found = comm.all_reduce_nodes(nodes, out=nodes[-1])
        assert_same(found, wanted, f"{comm.transport} all_reduce_nodes")
