"""How many samples a replica passes at once, where nobody says."""

from __future__ import annotations

from plait.nn import LayerSpec

_PER_STAGE = (
    4  # microbatches: with P stages (P - 1) / (4 P + P - 1) of the time, at most a fifth, is idle
)


def auto_microbatch(layers: list[LayerSpec], batch: int, data: int, pipeline: int) -> int | None:
    """All samples of a replica, or less to keep a pipeline busy.

    None, that is each data leaf's samples by themselves, where a layer mixes the samples of a
    microbatch (batch norm): the layout must not change what they are."""
    if any(spec.mixes_samples for spec in layers):
        return None
    own = -(-batch // data)
    return own if pipeline == 1 else -(-own // (_PER_STAGE * pipeline))
