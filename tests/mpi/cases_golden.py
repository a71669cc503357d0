"""GPT-2 against the golden values of Hugging Face transformers, on four ranks."""

from __future__ import annotations

from typing import Any

from golden import check_gpt2
from harness import case

from plait.comm import Communicator
from plait.mesh import Mesh


@case(4, limit=60.0)
def gpt2_is_that_of_transformers(world: Communicator) -> None:
    variants: list[tuple[tuple[int, int, int], dict[str, Any]]] = [
        ((1, 2, 2), {"microbatch": 1}),
        ((1, 2, 2), {"microbatch": 2, "sequence_parallel": True}),
        ((2, 2, 1), {"zero": 1, "recompute": "layer"}),
    ]
    for layout, settings in variants:
        check_gpt2(Mesh(*layout, grains={"data": 3, "tensor": 4}, comm=world), **settings)
