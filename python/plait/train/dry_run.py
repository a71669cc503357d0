"""plait train --dry-run: everything that can be refused without MPI, and what a rank will hold."""

from __future__ import annotations

from plait import mesh
from plait.plan import memory
from plait.report import Screen, bytes_text, count_text
from plait.train.build import build_dataset, build_model, build_optimizer
from plait.train.checks import check_folder
from plait.train.config import Config
from plait.train.setup import (
    check_grains,
    check_memory,
    check_threads,
    grains_of,
    memory_request,
    users_fault,
)


def rehearse(config: Config, ranks: int | None) -> None:
    """Refuses what `plait train` would, but for what only preparing a text shows. ranks: how many
    will be started; None: as many as the layout asks for."""
    with users_fault():
        layout = config.layout.resolve(ranks or config.layout.ranks or 1)
        check_threads(config)
        check_folder(config)
        dataset = build_dataset(config)
        dataset.look()
        specs = build_model(config, dataset)
        build_optimizer(config)
        grains = grains_of(config, specs, layout)
        check_grains(specs, layout, grains, config.train.batch)
        request = memory_request(config, specs, layout)
        plan = memory(specs, request)
        shape = mesh.Layout(layout.data or 1, layout.tensor, layout.pipeline)
        Screen().header(
            {
                "layout": f"{shape} on {shape.ranks} ranks",
                "parameters": count_text(sum(spec.parameters for spec in specs)),
                "grains": "{} x {}".format(*grains),
                "weights": bytes_text(plan.weights),
                "gradients": bytes_text(plan.gradients),
                "masters": bytes_text(plan.masters),
                "optimizer": bytes_text(plan.state),
                "activations": bytes_text(plan.activations),
                "a rank": bytes_text(plan.total),
            }
        )
        check_memory(config, specs, layout, request.ranks)
