"""Reverse-mode differentiation over an explicit tape, in pure Python."""

from plait.autograd.observer import SILENT, Observer
from plait.autograd.recompute import Recompute, recompute
from plait.autograd.tape import Array, Context, Function, Pending, Tape, Tensor, is_parameter

__all__ = [
    "SILENT",
    "Array",
    "Context",
    "Function",
    "Observer",
    "Pending",
    "Recompute",
    "Tape",
    "Tensor",
    "is_parameter",
    "recompute",
]
