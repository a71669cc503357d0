"""Sums arrays of several sizes over the world and compares the bits with the tree, added by
numpy."""

import sys

import numpy as np
from mpi4py import MPI

import plait
from plait.comm.tree import merges


def expected(size: int, count: int) -> np.ndarray:
    parts = [np.random.default_rng(rank).standard_normal(count, np.float32) for rank in range(size)]
    stack = []
    for part, times in zip(parts, merges(size, [(r, r + 1) for r in range(size)]), strict=True):
        stack.append(part)
        for _ in range(times):
            right = stack.pop()
            stack[-1] = stack[-1] + right
    (total,) = stack
    return total


mesh = plait.Mesh(data=int(sys.argv[1]))
comm = mesh.world
for count in (0, 1, 1000, 300_001):
    x = np.random.default_rng(comm.rank).standard_normal(count, np.float32)
    np.testing.assert_array_equal(comm.all_reduce(x), expected(comm.size, count))
    np.testing.assert_array_equal(comm.all_gather(x[None]).shape, (comm.size, count))
hosts = set(MPI.COMM_WORLD.allgather(MPI.Get_processor_name()))
if comm.rank == 0:
    library = MPI.Get_library_version().split()[0]
    print(f"{comm.size} ranks on {' '.join(sorted(hosts))} by {library}: same bits")
