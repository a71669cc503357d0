"""The automatic grains are frozen: a change here changes bits and needs a new NUMERICS_VERSION."""

import pytest

from plait import models
from plait.train.grains import auto_grains


@pytest.mark.parametrize(
    ("heads", "batch", "grains"),
    [(4, 16, (8, 2)), (2, 8, (8, 2)), (3, 16, (8, 1)), (1, 5, (5, 1)), (12, 512, (8, 2))],
)
def test_of_transformers(heads: int, batch: int, grains: tuple[int, int]) -> None:
    sizes = {"layers": 2, "hidden_dim": 12 * heads, "heads": heads}
    specs = models.gpt(**sizes, vocabulary=300, sequence_length=8)
    assert auto_grains(specs, batch) == grains


def test_of_grouped_heads() -> None:
    sizes = {"layers": 1, "hidden_dim": 48, "heads": 6, "vocabulary": 300, "sequence_length": 8}
    assert auto_grains(models.llama(**sizes, kv_heads=3), 64) == (8, 1)
    assert auto_grains(models.llama(**sizes, kv_heads=2), 64) == (8, 2)
