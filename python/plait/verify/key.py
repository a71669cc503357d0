"""What is compared, in the order in which one rank that does everything would compute it."""

from __future__ import annotations

from typing import NamedTuple

STATE, DATA, FORWARD, BACKWARD, REDUCED, RESULT = range(6)  # phases of a step
CHAIN = 1000  # part of a gradient that is not reduced yet, after those of activations


class Key(NamedTuple):
    """One tensor of one step; keys sort in the order of execution. What a tensor is, its samples
    aside, no layout changes."""

    step: int
    phase: int
    layer: int  # from the front of the model; from its end in backward
    again: int  # 0 where a layer runs again for backward, 1 for its backward
    call: int  # of a Function in the layer; from its end in backward
    part: int  # of the call's outputs or gradients
    what: str

    @property
    def when(self) -> str:
        if self.phase != STATE:
            return f"in step {self.step + 1}"
        return f"after step {self.step}" if self.step else "before the first step"
