"""Checkpoints: layout-free, atomic, hashed; safetensors files and a JSON manifest, no pickle."""

from .export import export
from .inspect import Report, summary, verify
from .load import load
from .manifest import Array, CheckpointError, Manifest, Stored
from .piece import KINDS, AccessError, Comm, Piece
from .reader import Reader, find, latest, resumable
from .save import clean, save

__all__ = [
    "KINDS",
    "AccessError",
    "Array",
    "CheckpointError",
    "Comm",
    "Manifest",
    "Piece",
    "Reader",
    "Report",
    "Stored",
    "clean",
    "export",
    "find",
    "latest",
    "load",
    "resumable",
    "save",
    "summary",
    "verify",
]
