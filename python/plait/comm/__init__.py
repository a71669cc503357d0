"""Communicators: collectives over ranks with the same bits on every transport."""

from plait.comm.communicator import Communicator
from plait.comm.tree import Leaves
from plait.comm.work import Work

__all__ = ["Communicator", "Leaves", "Work"]
