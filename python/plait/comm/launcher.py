"""What a launcher says about the world in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

# A launcher's number of ranks, the nearest to the process first: an mpiexec inside an srun wins.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PALS_NRANKS", "SLURM_STEP_NUM_TASKS")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PALS_RANKID", "SLURM_PROCID", "PMIX_RANK")
# Set for every rank of launchers that do not say how many they started.
_SIGNS = ("PMIX_RANK", "PMI_RANK", "PMI_FD", "PALS_RANKID", "FLUX_TASK_RANK", "JSM_NAMESPACE_RANK")


@dataclass(frozen=True)
class Launched:
    """Whether a launcher started this process; its number of ranks and the variable with it,
    this process's rank as the launcher counts, and whether it is MPICH's mpiexec (hydra)."""

    launched: bool
    size: int | None = None
    variable: str = ""
    slurm: bool = False
    rank: int = 0
    hydra: bool = False


def launcher() -> Launched:
    """The one place where plait reads what a launcher left in the environment."""
    slurm = "SLURM_STEP_ID" in os.environ
    rank = _first_number(_RANKS)[1] or 0
    variable, size = _first_number(_SIZES)
    launched = size is not None or any(name in os.environ for name in _SIGNS)
    return Launched(launched, size, variable, slurm, rank, "HYDI_CONTROL_FD" in os.environ)


def _first_number(names: tuple[str, ...]) -> tuple[str, int | None]:
    for name in names:
        if os.environ.get(name, "").isdigit():
            return name, int(os.environ[name])
    return "", None
