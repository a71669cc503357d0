"""Layers, and what a user needs to write one."""

from plait.nn.attention import SelfAttention
from plait.nn.conv import BatchNorm, ColumnConv, GatherChannels, RowConv
from plait.nn.embedding import Dropout, PositionEmbedding, VocabEmbedding
from plait.nn.layer import Build, Layer, LayerSpec, Recomputed
from plait.nn.linear import ColumnLinear, Head, RowLinear
from plait.nn.norm import LayerNorm, RMSNorm
from plait.ops.parameter import Init, Parameter

__all__ = [
    "BatchNorm", "Build", "ColumnConv", "ColumnLinear", "Dropout", "GatherChannels", "Head", "Init",
    "Layer", "LayerNorm", "LayerSpec", "Parameter", "PositionEmbedding", "RMSNorm", "Recomputed",
    "RowConv", "RowLinear", "SelfAttention", "VocabEmbedding",
]  # fmt: skip
