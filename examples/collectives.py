import numpy as np, plait
from mpi4py import MPI
comm = plait.communicator(MPI.COMM_WORLD)          # chooses node, mpi or hierarchical
rows = 4096 // comm.size
x = np.random.rand(2048, rows).astype(np.float32)  # this rank's columns of X
w = np.random.rand(rows, 1024).astype(np.float32)  # this rank's rows of W
y = comm.empty((2048, 1024), np.float32)           # in the arena: no copy
plait.matmul_all_reduce(x, w, comm, out=y)         # X @ W on every rank
