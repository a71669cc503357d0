"""Layers, and what a user needs to write one."""

from plait.nn.attention import SelfAttention
from plait.nn.embedding import Dropout, PositionEmbedding, VocabEmbedding
from plait.nn.layer import Build, Layer, LayerSpec, Recomputed
from plait.nn.linear import ColumnLinear, Head, RowLinear
from plait.nn.norm import LayerNorm, RMSNorm
from plait.ops.parameter import Init, Parameter

__all__ = [
    "Build", "ColumnLinear", "Dropout", "Head", "Init", "Layer", "LayerNorm", "LayerSpec",
    "Parameter", "PositionEmbedding", "RMSNorm", "Recomputed", "RowLinear", "SelfAttention",
    "VocabEmbedding",
]  # fmt: skip
