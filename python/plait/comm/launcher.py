"""What a launcher says about the world in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

# A launcher's number of ranks, the nearest to the process first: an mpiexec inside an srun wins.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PALS_NRANKS", "SLURM_STEP_NUM_TASKS")
# Set for every rank of launchers that do not say how many they started.
_SIGNS = ("PMIX_RANK", "PMI_RANK", "PMI_FD", "PALS_RANKID", "FLUX_TASK_RANK", "JSM_NAMESPACE_RANK")


@dataclass(frozen=True)
class Launched:
    """Whether a launcher started this process; its number of ranks and the variable with it."""

    launched: bool
    size: int | None = None
    variable: str = ""
    slurm: bool = False


def launcher() -> Launched:
    """The one place where plait reads what a launcher left in the environment."""
    slurm = "SLURM_STEP_ID" in os.environ
    for name in _SIZES:
        if os.environ.get(name, "").isdigit():
            return Launched(True, int(os.environ[name]), name, slurm)
    return Launched(any(name in os.environ for name in _SIGNS), slurm=slurm)
