"""A collective with everything checked and laid out, for loops that run it again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plait.backend import address
from plait.comm.work import Array, Quick, Steps, Work, active, finish

if TYPE_CHECKING:
    from plait.comm.ranks import Ranks

PLANS = (
    "all_reduce", "all_reduce_nodes", "reduce_scatter", "reduce_scatter_nodes", "all_gather",
    "all_to_all", "broadcast", "barrier",
)  # fmt: skip


class Plan:
    """Called, it runs its steps once more.

    prepared: whether the steps read the caller's arrays themselves and can be taken again; else
    they serve one call only.
    """

    __slots__ = ("_name", "_nbytes", "_quick", "_result", "_steps", "_tally", "prepared")

    def __init__(
        self, comm: Ranks, name: str, x: Array | None, others: Sequence[Array], steps: Steps,
        result: Any,
    ) -> None:  # fmt: skip
        self._name, self._steps, self._result = name, steps, result
        self._tally = comm.tally[name]
        self._nbytes = 0 if x is None else x.nbytes
        self.prepared = isinstance(steps, Quick) and _reads(steps, x, *others)
        self._quick = steps.quick if isinstance(steps, Quick) else _never

    def __call__(self) -> Any:
        tally = self._tally
        tally[0] += 1
        tally[1] += self._nbytes
        if active:
            return Work(self._name, self._steps, self._result).wait()
        if not self._quick():
            assert isinstance(self._steps, Quick)
            finish(self._name, self._steps)
        return self._result


def _reads(steps: Quick, *given: Array | None) -> bool:
    return [address(x) for x in steps.reads] == [address(x) for x in given if x is not None]


def _never() -> bool:
    raise AssertionError("these steps cannot be run again")
