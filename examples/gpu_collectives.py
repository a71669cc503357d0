"""Collectives of GPU arrays in an MPI program of one's own:

    mpiexec -n 2 python -m mpi4py examples/gpu_collectives.py

Ranks of a node can have a GPU each, or share one. Needs plait with CUDA, and CuPy.
"""

import numpy as np
from mpi4py import MPI

import plait
from plait import backend
from plait.optim import AdamW

world = MPI.COMM_WORLD
local_rank = world.Split_type(MPI.COMM_TYPE_SHARED, world.rank).rank
engine = backend.use("cuda", local_rank)  # first: then communicators take the device's arrays
comm = plait.communicator(world)
if comm.rank == 0:
    print(f"{comm.size} ranks on {engine}, transport {comm.transport}")

# Arrays of comm.empty lie where the ranks of a node read and write them; others are copied once.
x = comm.empty((1024, 256), np.float32)  # CuPy's
x.set(np.full(x.shape, comm.rank + 1, np.float32))
total = comm.all_reduce(x)  # the same bits on every rank
assert (total.get() == comm.size * (comm.size + 1) / 2).all()

# What is started goes on in the stream of the device: its result may be used there at once.
work = comm.all_gather(x, blocking=False)
assert work.wait().shape == (1024 * comm.size, 256)

# X @ W, whose columns and rows are cut over the ranks
rows = 512 // comm.size
random = np.random.default_rng(comm.rank)
a = backend.to_device(random.random((128, rows), np.float32))
b = backend.to_device(random.random((rows, 64), np.float32))
y = comm.empty((128, 64), np.float32)
plait.matmul_all_reduce(a, b, comm, out=y)

# Gradients summed over ranks, AdamW on this rank's slice, the new weights on every rank
n = 100_000
start, stop = (r * n // comm.size for r in (comm.rank, comm.rank + 1))
grad, weight = comm.empty(n), comm.empty(n)
weight.fill(0)
master = backend.zeros(stop - start)
state = {"first": backend.zeros(stop - start), "second": backend.zeros(stop - start)}
for step in (1, 2, 3):
    grad.set(random.random(n, np.float32))
    plait.reduce_update_gather(
        grad, weight, master, state, comm, AdamW(), step=step, scale=1 / comm.size
    )
same = world.allgather(weight.get().tobytes())
assert all(each == same[0] for each in same)

# In a loop: checked and laid out once
again = comm.plan("all_reduce", grad, out=grad)
for _ in range(10):
    again()
comm.barrier()  # also of the devices; whatever went wrong there is told here at the latest
comm.close()
