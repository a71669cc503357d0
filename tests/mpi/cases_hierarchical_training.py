"""Training whose replicas are on several nodes, several on one: the bits of one rank, also as a
CUDA graph."""

from __future__ import annotations

import gc
from typing import Any

from cases_hierarchical_device import WAYS, ranks_on
from devices import REAL, fake_cupy
from harness import case
from transports import on_nodes

import plait
from plait import models, optim, train
from plait.comm import Communicator
from plait.comm.alone import Alone
from plait.data import synthetic
from plait.train.digest import state_digest

# Layouts, and the node of each rank. The long one has tensor ranks that share a stream with the
# replicas' collectives.
TRAININGS: dict[int, list[tuple[tuple[int, int, int], list[int], dict[str, Any]]]] = {
    4: [
        ((4, 1, 1), [0, 0, 1, 1], {"zero": 1}),
        ((4, 1, 1), [0, 0, 0, 1], {"clip": 1.0}),
    ],
    6: [
        ((3, 2, 1), [0, 0, 0, 0, 1, 1], {"zero": 1, "sequence_parallel": True}),
        ((3, 2, 1), [0, 0, 0, 0, 1, 1], {"clip": 1.0}),
    ],
}


def trained(
    comm: Communicator, layout: tuple[int, int, int], wanted: Any, **changes: Any
) -> tuple[list[float], str, str]:
    """Losses, the digest of what was learnt, and the transport of the data axis."""
    layers = models.gpt(
        layers=2, hidden_dim=24, heads=4, vocabulary=50, sequence_length=12, dropout=0.0
    )
    mesh = plait.Mesh(*layout, comm=comm)
    trainer = train.Trainer(
        layers, synthetic(samples=40, vocabulary=50, sequence_length=12, seed=3), mesh=mesh,
        optimizer=optim.AdamW(learning_rate=1e-2), batch=8, microbatch=2, seed=5, grains=(4, 2),
        backend=wanted, **changes,
    )  # fmt: skip
    losses = [step.loss for step in trainer.steps(4)]
    found = losses, state_digest(trainer.engine), trainer.mesh.data.transport
    del trainer
    gc.collect()
    mesh.close()
    return found


@case(ranks=(4, 6), long=(6,), cuda=True)
def training_over_nodes_has_the_bits_of_one_rank(world: Communicator) -> None:
    for number, (layout, nodes, changes) in enumerate(TRAININGS[world.size]):
        expected: Any = None
        for way in WAYS if number == 0 or world.size > 4 else WAYS[:1]:
            with ranks_on(way, world):
                if expected is None:
                    one = trained(Alone(), (1, 1, 1), "cuda" if REAL else "cpu", **changes)
                    expected = one[:2]
                before = 0 if REAL else fake_cupy.Graph.launches
                *got, transport = trained(on_nodes(nodes), layout, "cuda", **changes)
                assert transport.startswith("hierarchical: peer"), transport
                assert tuple(got) == expected, (layout, nodes, changes, way)
                if way == "nccl":
                    assert fake_cupy.Graph.launches - before == 2, "steps 3 and 4"
