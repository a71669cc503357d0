"""Rank 1 raises while the others wait for it in a collective."""

import sys
import time
from pathlib import Path

import numpy as np

import plait

mesh = plait.Mesh(data=int(sys.argv[1]))
mesh.world.barrier()
if mesh.world.rank == 1:
    Path(sys.argv[2]).write_text(str(time.time()))
    raise RuntimeError("rank 1 has had enough")
mesh.world.all_reduce(np.ones(8, np.float32))
