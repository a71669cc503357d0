"""Differentiable operations: each a Function that glues a forward and a backward kernel."""

from plait.ops.activation import GELU, Add, Dropout, ReLU, SwiGLU, dropout
from plait.ops.attention import Attention
from plait.ops.batch_norm import BatchNorm
from plait.ops.conv import ColumnConv, GatherChannels, RowConv
from plait.ops.cross_entropy import CrossEntropy
from plait.ops.embedding import PositionEmbedding, VocabEmbedding
from plait.ops.linear import ColumnGELU, ColumnLinear, RowLinear
from plait.ops.norm import LayerNorm, ResidualLayerNorm, ResidualRMSNorm, RMSNorm
from plait.ops.parameter import Init, Parameter
from plait.ops.patches import MeanPositions, Patches
from plait.ops.pool import MaxPool, MeanPool
from plait.ops.position import Position, Segment, Share
from plait.ops.row_norm import RowLinearNorm
from plait.ops.sums import fan_in

__all__ = [
    "GELU", "Add", "Attention", "BatchNorm", "ColumnConv", "ColumnGELU", "ColumnLinear",
    "CrossEntropy", "Dropout", "GatherChannels", "Init", "LayerNorm", "MaxPool", "MeanPool",
    "MeanPositions", "Parameter", "Patches", "Position", "PositionEmbedding", "RMSNorm", "ReLU",
    "ResidualLayerNorm", "ResidualRMSNorm", "RowConv", "RowLinear", "RowLinearNorm", "Segment",
    "Share", "SwiGLU", "VocabEmbedding", "dropout", "fan_in",
]  # fmt: skip
