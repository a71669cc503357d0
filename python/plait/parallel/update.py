"""An optimizer's step fused with its collectives, for any MPI program on numpy arrays."""

from __future__ import annotations

from plait.backend import Array, assign, beside, bfloat16, float32, kernels_of, writeable
from plait.comm import Communicator, Leaves
from plait.comm.agree import agree
from plait.comm.border import bordered
from plait.comm.combine import even_bounds
from plait.optim import Optimizer

CHUNK = 1 << 17  # elements that are summed, updated and sent on while they are in cache


@bordered
def reduce_update_gather(
    grad: Array, weight: Array, master: Array, state: dict[str, Array], comm: Communicator,
    optimizer: Optimizer, *, step: int, scale: float = 1.0, learning_rate: float | None = None,
    decay: bool = True,
) -> Array:  # fmt: skip
    """One step of an optimizer whose state is cut over the ranks of comm: gradients are summed,
    this rank's slice is updated, and its new weights go to every rank, chunk by chunk.

    grad: (n,) float32, this rank's whole gradient; weight: (n,) float32 or bfloat16, the same on
    all ranks, gets the new weights and is returned. master and every array of state: float32, this
    rank's slice [r * n // size, (r + 1) * n // size). step counts from 1; the summed gradient is
    multiplied by scale (1 / ranks for a mean). decay=False leaves weight decay out.

    With grad and weight from comm.empty on one node gradients are read, and weights written, where
    they lie: 4 bytes a gradient and rank, 24 for the state of AdamW, 2 a bfloat16 weight and rank.

    ValueError if shapes or types do not fit, on every rank.
    """
    bounds = even_bounds(grad.size, comm.size)
    start, stop = bounds[comm.rank], bounds[comm.rank + 1]
    problem = _problem(grad, weight, master, state, optimizer, stop - start)
    agree("reduce_update_gather", comm, problem, {"grad": grad.shape, "weight": weight.dtype})
    rate = optimizer.learning_rate if learning_rate is None else learning_rate

    def update(total: Array, first: int) -> None:
        where = slice(first - start, first - start + len(total))
        cut = {key: value[where] for key, value in state.items()}
        target = weight[first : first + len(total)]
        optimizer.update(total, scale, rate, decay, step, master[where], cut, target)

    comm = comm.with_leaves(Leaves.even(comm.size, comm.size))
    views = comm.views(grad, weight)
    if views is None:
        update(comm.reduce_scatter_nodes(grad[None], bounds=bounds), start)
        gathered: Array = comm.all_gather(weight[start:stop], bounds=bounds, out=weight)
        return gathered
    grads, weights = views
    merges = comm.leaves.merges()
    total = beside(grad, (min(CHUNK, stop - start),), float32)
    for first in range(start, stop, CHUNK):
        chunk = slice(first, min(first + CHUNK, stop))
        summed = total[: chunk.stop - chunk.start]
        kernels_of(grad).tree_sum([g[chunk] for g in grads], merges, None, summed)
        update(summed, first)
        for other in weights:
            if other is not weight:
                assign(other[chunk], weight[chunk])
    comm.barrier()
    return weight


def _problem(
    grad: Array, weight: Array, master: Array, state: dict[str, Array], optimizer: Optimizer,
    own: int,
) -> str:  # fmt: skip
    """What is wrong with the arrays of reduce_update_gather, or nothing."""
    slices = {"master": master, **state}
    if set(state) != set(optimizer.state):
        return f"state has {sorted(state)}, the optimizer needs {sorted(optimizer.state)}"
    for key, x in {"grad": grad, "weight": weight, **slices}.items():
        length = own if key in slices else grad.size
        kinds = (float32, bfloat16) if key == "weight" else (float32,)
        if x.shape != (length,) or x.dtype not in kinds or not x.flags.c_contiguous:
            kind = "float32 or bfloat16" if key == "weight" else "float32"
            return (
                f"{key} is {x.shape} {x.dtype}{'' if x.flags.c_contiguous else ', strided'}, "
                f"must be contiguous ({length},) {kind}"
            )
        if key != "grad" and not writeable(x):
            return f"{key} is read-only"
    return ""
