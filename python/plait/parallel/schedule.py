"""Pipeline schedules as data: which microbatch a stage runs forward or backward, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Action:
    kind: Literal["forward", "backward"]
    microbatch: int


def gpipe(stage: int, stages: int, microbatches: int) -> tuple[Action, ...]:
    """All forwards, then all backwards (Huang et al. 2019); backwards in ascending order too."""
    return tuple(
        Action(kind, index) for kind in ("forward", "backward") for index in range(microbatches)
    )


def one_f_one_b(stage: int, stages: int, microbatches: int) -> tuple[Action, ...]:
    """Warm-up forwards, then one forward and one backward in turn (Narayanan et al. 2019): a stage
    keeps the activations of at most stages - stage microbatches."""
    warm_up = min(stages - stage - 1, microbatches)
    actions = [Action("forward", index) for index in range(warm_up)]
    for index in range(microbatches):
        if warm_up + index < microbatches:
            actions.append(Action("forward", warm_up + index))
        actions.append(Action("backward", index))
    return tuple(actions)


SCHEDULES = {"gpipe": gpipe, "one_f_one_b": one_f_one_b}


def validate(actions: tuple[Action, ...], microbatches: int) -> None:
    """Every microbatch once forward, then once backward; backwards in ascending order, so that
    every parameter adds its gradients in sample order. ValueError names what is wrong."""
    forward: list[int] = []
    backward: list[int] = []
    for action in actions:
        if action.kind == "forward":
            forward.append(action.microbatch)
        else:
            if action.microbatch not in forward:
                raise ValueError(f"microbatch {action.microbatch} runs backward before forward")
            backward.append(action.microbatch)
    for kind, order in (("forward", forward), ("backward", backward)):
        if order != list(range(microbatches)):
            raise ValueError(f"{kind}s run in order {order}, not ascending over {microbatches}")
