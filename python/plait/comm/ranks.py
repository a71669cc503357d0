"""What all collectives have in common: they are counted and started, planned, or refused."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from plait.backend import on_device
from plait.backend.host import kernels
from plait.backend.recorder import Recorder
from plait.comm.border import bordered, holds_foreign
from plait.comm.plan import PLANS, Plan
from plait.comm.transport import PeerFailed, Transport
from plait.comm.tree import Leaves
from plait.comm.work import Array, Steps, Work, run

Self = TypeVar("Self", bound="Ranks")
Given = ParamSpec("Given")


def collective(
    method: Callable[Concatenate[Self, Given], Any],
) -> Callable[Concatenate[Self, Given], Any]:
    """A collective that tells the other ranks where this one refuses its arguments."""

    @bordered
    @wraps(method)
    def checked(self: Self, /, *args: Given.args, **kwargs: Given.kwargs) -> Any:
        try:
            return method(self, *args, **kwargs)
        except kernels.Disagreement:
            raise
        except ValueError:
            if self._plans is None and self.size > 1:
                x: Any = args[0] if args else kwargs.get("x", kwargs.get("nodes"))
                with suppress(PeerFailed):  # here the reason is known
                    Work("refused", self._refused(x)).wait()
            raise

    return checked


class Ranks(Transport):
    """tally: how often each collective was called here, and the bytes that this rank handed in."""

    rank: int
    size: int
    leaves: Leaves
    _plans: list[Plan] | None = None  # takes what would be started

    def __init__(self, rank: int, size: int, leaves: Leaves | None = None):
        self.rank, self.size = rank, size
        self.leaves = leaves or Leaves.even(size, size)
        self.tally: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])

    def reset_tally(self) -> None:
        for counts in self.tally.values():  # plans keep theirs
            counts[:] = 0, 0

    def plan(self, collective: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """The collective of this name with these arguments, checked and laid out once: every call
        of what it returns runs it on what the arrays hold then, and gives its result.

        Without `out` the result is the plan's own, and the next call overwrites it. All ranks must
        call their plans in the same order, as they would the collectives; the arrays must stay.
        """
        if collective not in PLANS:
            raise ValueError(f"plan: {collective!r} is none of {', '.join(PLANS)}")
        if "blocking" in kwargs:
            raise ValueError("plan: a plan's call returns when its result is there: no blocking=")
        if any(map(holds_foreign, (*args, *kwargs.values()))):
            return partial(getattr(self, collective), *args, **kwargs)
        other = copy.copy(self)
        other._plans = []
        getattr(other, collective)(*args, **kwargs)
        (found,) = other._plans
        return found if found.prepared else partial(getattr(self, collective), *args, **kwargs)

    def _start(
        self,
        name: str,
        x: Array | None,
        steps: Steps,
        result: Any,
        blocking: bool,
        others: Sequence[Array] = (),
    ) -> Any:
        """x and others: the arrays that are read."""
        if Recorder.recording and self.size > 1 and (x is None or not on_device(x)):
            raise RuntimeError(f"{name} is the host's, and would not be done again")
        if self._plans is not None:
            self._plans.append(Plan(self, name, x, others, steps, result))
            return None
        if x is not None:
            tally = self.tally[name]
            tally[0] += 1
            tally[1] += x.nbytes
        return run(name, steps, result) if blocking else Work(name, steps, result)

    def _given(self, name: str, x: Array, result: Array, blocking: bool) -> Any:
        return self._start(name, x, (), result, blocking)

    def _check_rank(self, name: str, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise ValueError(f"{name}: rank {rank} is outside a communicator of {self.size}")
