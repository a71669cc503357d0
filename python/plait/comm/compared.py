"""The checked mode of transports that compare nothing themselves: NCCL and MPI wait for ever for
what does not fit, or take it. What every rank is about to do is told over the host first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import Concatenate, ParamSpec, TypeVar

from plait.backend import on_device
from plait.comm.combine import Bounds, Reduction
from plait.comm.communicator import Communicator
from plait.comm.staged import Staged
from plait.comm.transport import PeerFailed
from plait.comm.work import Array, Poll, Steps

Given = ParamSpec("Given")
Self = TypeVar("Self", bound="Compared")


@dataclass(frozen=True)
class Call:
    """text: the same on all ranks; sends, receives: the bytes for and from each rank, where the
    others cannot know them."""

    text: str
    sends: tuple[int, ...] = ()
    receives: tuple[int, ...] = ()


class Compared(Staged):
    """checked, on all ranks or on none: PeerFailed on every rank, before anything is moved, if they
    call different collectives, or one refuses its arguments."""

    checked = False

    def _barrier(self) -> Steps:
        return self.first(Call("barrier"), super()._barrier())

    def _refused(self, x: Array | None) -> Steps:
        refused = Call("a call it refuses")
        return self.first(refused, ()) if self.checked else super()._refused(x)

    def first(self, call: Call, steps: Steps) -> Steps:
        """In the checked mode steps, once all ranks are known to take them."""
        return _once_agreed(self.inner, call, steps) if self.checked else steps


def compared(
    hook: Callable[Concatenate[Self, Given], Steps],
) -> Callable[Concatenate[Self, Given], Steps]:
    """A collective of a Compared communicator, by its hook of transport.py."""
    call_of: Callable[..., Call] = _CALLS[hook.__name__]

    @wraps(hook)
    def steps(self: Self, /, *args: Given.args, **kwargs: Given.kwargs) -> Steps:
        found = hook(self, *args, **kwargs)
        return self.first(call_of(*args, **kwargs), found) if self.checked else found

    return steps


def _once_agreed(host: Communicator, call: Call, steps: Steps) -> Iterator[Poll]:
    told: list[Call] = host.all_gather_object(call)
    for rank, other in enumerate(told):
        if other.text != told[0].text:
            raise PeerFailed(
                f"rank {host.rank}: rank 0 calls {told[0].text}, rank {rank} {other.text}"
            )
    for source, sender in enumerate(told):
        for rank, (size, receiver) in enumerate(zip(sender.sends, told)):
            if size != receiver.receives[source]:
                raise PeerFailed(
                    f"rank {host.rank}: rank {source} sends rank {rank} {size} bytes in its "
                    f"{sender.text}, rank {rank} receives {receiver.receives[source]} from it in "
                    "its own"
                )
    yield from steps


# --- what the hooks are asked for -----------------------------------------------------------------


def _all_reduce(reduction: Reduction, out: Array) -> Call:
    return Call(f"all_reduce {_sum(reduction, out)}")


def _reduce_scatter(reduction: Reduction, out: Array) -> Call:
    shape = " x ".join(map(str, reduction.nodes.shape[1:]))
    return Call(f"reduce_scatter {_sum(reduction, out)}, {shape} cut at {reduction.bounds}")


def _all_gather(x: Array, lengths: Sequence[int], out: Array) -> Call:
    size = x.dtype.itemsize
    return Call(
        f"all_gather of {out.nbytes} bytes of {_kind(out)}, {[size * n for n in lengths]} of ranks"
    )


def _all_to_all(x: Array, sends: Bounds, out: Array, receives: Bounds) -> Call:
    size = x.dtype.itemsize
    of, to = ([size * (b - a) for a, b in pairwise(cut)] for cut in (sends, receives))
    return Call(f"all_to_all of {_kind(x)}", tuple(of), tuple(to))


def _broadcast(x: Array, root: int) -> Call:
    return Call(f"broadcast of {x.nbytes} bytes of {_kind(x)} from rank {root}")


def _sum(reduction: Reduction, out: Array) -> str:
    nodes, bias = reduction.nodes, reduction.bias
    size = math.prod(nodes.shape[1:]) * nodes.itemsize  # of one: ranks may have several
    kind = _kind(out) if nodes.dtype == out.dtype else f"{nodes.dtype} to {_kind(out)}"
    text = f"({reduction.op} of {kind}) of {size} bytes, leaves cut at {reduction.leaves.bounds}"
    return text if bias is None else f"{text}, a bias of {bias.size}"


def _kind(x: Array) -> str:
    return f"{x.dtype} on the {'device' if on_device(x) else 'host'}"


_CALLS: dict[str, Callable[..., Call]] = {
    "_all_reduce": _all_reduce,
    "_reduce_scatter": _reduce_scatter,
    "_all_gather": _all_gather,
    "_all_to_all": _all_to_all,
    "_broadcast": _broadcast,
}
