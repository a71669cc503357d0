"""The grains of canonical sums where the config leaves them to plait: a frozen function of the
model and batch.

It never looks at the layout, the microbatch or the number of ranks, and it is never timed. A change
here changes bits: numerics.NUMERICS_VERSION then goes up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plait.nn import LayerSpec


def auto_grains(layers: list[LayerSpec], batch: int) -> tuple[int, int]:
    """(data, tensor): 8 data leaves, or the batch if it is smaller; 2 tensor leaves where heads
    allow."""
    return auto_grains_of((spec.tensor_units for spec in layers), batch)


def auto_grains_of(units: Iterable[int], batch: int) -> tuple[int, int]:
    """The same where only the heads are known; 0 is a layer without."""
    tensor = 2 if all(unit % 2 == 0 for unit in units) else 1
    return min(8, batch), tensor
