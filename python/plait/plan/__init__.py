"""What a run will need, before it starts: pure Python, no MPI, no arrays."""

from plait.plan.memory import Memory, Request, fits, memory, smallest_change

__all__ = ["Memory", "Request", "fits", "memory", "smallest_change"]
