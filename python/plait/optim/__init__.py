"""Optimizers and learning-rate schedules."""

from plait.optim.optimizers import SGD, AdamW, Optimizer
from plait.optim.schedules import Schedule, constant, cosine, linear

__all__ = ["SGD", "AdamW", "Optimizer", "Schedule", "constant", "cosine", "linear"]
