"""What a run leaves on disk and on the screen. Only rank 0 writes and speaks."""

from .memory import limit_bytes, peak_bytes, reset_peak, resident_bytes
from .progress import Progress
from .run_folder import RunFolder, on_rank_0
from .screen import Screen
from .text import bytes_text, count_text, time_text

__all__ = [
    "Progress",
    "RunFolder",
    "Screen",
    "bytes_text",
    "count_text",
    "limit_bytes",
    "on_rank_0",
    "peak_bytes",
    "reset_peak",
    "resident_bytes",
    "time_text",
]
