import numpy as np, plait
from mpi4py import MPI
comm = plait.communicator(MPI.COMM_WORLD)          # chooses node, mpi or hierarchical
rows = 4096 // comm.size
x = np.random.rand(2048, rows).astype(np.float32)  # this rank's columns of X
w = np.random.rand(rows, 1024).astype(np.float32)  # this rank's rows of W
y = comm.empty((2048, 1024), np.float32)           # in the arena: no copy
plait.matmul_all_reduce(x, w, comm, out=y)         # X @ W on every rank

part = plait.matmul_reduce_scatter(x, w, comm)     # this rank's rows of the same X @ W
v = np.random.rand(1024, 256).astype(np.float32)   # a matrix of this rank's own
z = plait.all_gather_matmul(part, v, comm)         # all rows of X @ W @ v

from plait.optim import AdamW
n = 1_000_000                                      # parameters; their state is cut over ranks
start, stop = (r * n // comm.size for r in (comm.rank, comm.rank + 1))
grad, weight = comm.empty(n), comm.empty(n)        # float32
weight[:] = 1
master = weight[start:stop].copy()
state = {"first": np.zeros_like(master), "second": np.zeros_like(master)}
optimizer = AdamW()
for step in (1, 2, 3):
    grad[:] = np.random.rand(n)
    plait.reduce_update_gather(grad, weight, master, state, comm, optimizer, step=step, scale=1 / comm.size)

again = comm.plan("all_reduce", grad, out=grad)    # checked and laid out once, for a loop
for _ in range(10):
    again()
