"""Replicas check themselves: what several data ranks hold must have the same bits on all of them.

A flipped bit of a broken memory, or a mistake in an op, otherwise trains on unseen. Only sums of
64 bits cross the network: one of each array of each parameter (kernels.fingerprint).
"""

from __future__ import annotations

import socket

import numpy as np

from plait.backend import Array, float32, kernels
from plait.mesh import Coordinates
from plait.train.engine import Engine


class ReplicasDiffer(RuntimeError):
    """The message names parameter, rank and host."""


def check_replicas(engine: Engine) -> None:
    """Raises ReplicasDiffer, the same on all ranks, which all call this.

    Compared are weights, and masters and optimizer state where every replica holds them (without
    ZeRO)."""
    mesh = engine.mesh
    if mesh.data.size == 1:
        return
    names, mine = _fingerprints(engine)
    every = mesh.data.all_gather(mine[None])
    found = [(name, _odd_ones(every[:, i])) for i, name in enumerate(names)]
    found = [(name, ranks) for name, ranks in found if ranks]
    if not mesh.world.all_reduce(np.array([len(found)], np.int64), op="max")[0]:
        return
    here = (socket.gethostname(), mesh.coordinates, found[:1])
    hosts, coordinates, firsts = zip(*mesh.world.all_gather_object(here), strict=True)
    at, name, odd = next(
        (at, *first[0]) for at, first in zip(coordinates, firsts, strict=True) if first
    )
    ranks = [mesh.layout.rank(Coordinates(data, at.tensor, at.pipeline)) for data in odd]
    who = ", ".join(f"rank {rank} on host {hosts[rank]}" for rank in ranks)
    if len(odd) == mesh.data.size:
        raise ReplicasDiffer(
            f"replicas differ in {name}, and no majority tells who is wrong: {who}"
        )
    raise ReplicasDiffer(f"replicas differ in {name}: {who} has other bits than the others")


def _fingerprints(engine: Engine) -> tuple[list[str], Array]:
    sums: dict[str, int] = {}
    for index, bucket in enumerate(engine.buckets):
        arrays = {"the weight": bucket.weights}
        if not bucket.zero:
            arrays |= {f"the {kind} moment": x for kind, x in engine.state[index].items()}
            if bucket.weights.dtype != float32:
                arrays["the master"] = engine.master[index]
        for kind, array in arrays.items():
            for span in bucket.spans(slice(0, bucket.size)):
                name = f"{kind} of {span.parameter.name}"
                part = kernels.fingerprint(array[span.start : span.stop], span.global_start)
                sums[name] = (sums.get(name, 0) + part) % (1 << 64)
    return list(sums), np.array(list(sums.values()), np.uint64)


def _odd_ones(values: Array) -> list[int]:
    """Which ranks have another value than most; all of them if there is no majority."""
    kinds, counts = np.unique(values, return_counts=True)
    if len(kinds) == 1:
        return []
    if 2 * counts.max() <= len(values):
        return list(range(len(values)))
    odd: list[int] = np.flatnonzero(values != kinds[counts.argmax()]).tolist()
    return odd
