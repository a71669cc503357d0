"""Collectives and messages that move arrays as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from plait.backend import address, beside, contiguous, copied, share_memory
from plait.comm.arrays import (
    checked_axis,
    checked_out,
    delivered,
    direct,
    side_by_side,
)
from plait.comm.border import bordered
from plait.comm.combine import Bounds, checked_bounds
from plait.comm.ranks import Ranks, collective
from plait.comm.work import Array, Steps


class Moves(Ranks):
    @collective
    def all_gather(
        self,
        x: Array,
        *,
        axis: int = 0,
        bounds: Sequence[int] | None = None,
        out: Array | None = None,
        blocking: bool = True,
    ) -> Any:
        """The x of all ranks side by side along `axis`: rank r's at [bounds[r], bounds[r + 1]).

        Without bounds every rank has the same length. x may be this rank's slice of out.
        """
        axis = checked_axis("all_gather", axis, x.ndim)
        length = x.shape[axis]
        if bounds is None:
            bounds = tuple(length * rank for rank in range(self.size + 1))
        found = checked_bounds(bounds, bounds[-1], self.size)
        if found[self.rank + 1] - found[self.rank] != length:
            raise ValueError(
                f"all_gather: rank {self.rank} has length {length} on axis {axis}, "
                f"bounds {found} say {found[self.rank + 1] - found[self.rank]}"
            )
        shape = (*x.shape[:axis], found[-1], *x.shape[axis + 1 :])
        if self.size == 1 and (out is None or out is x):
            return self._given("all_gather", x, x, blocking)
        out = checked_out("all_gather", out, shape, x.dtype, x)
        steps = self._all_gather_steps(x, axis, found, out)
        return self._start("all_gather", x, steps, out, blocking)

    @collective
    def all_to_all(
        self,
        x: Array,
        send_bounds: Sequence[int],
        receive_bounds: Sequence[int],
        *,
        out: Array | None = None,
        blocking: bool = True,
    ) -> Any:
        """Rows x[send_bounds[r]:send_bounds[r + 1]] go to rank r; rank r's rows arrive at
        [receive_bounds[r], receive_bounds[r + 1]) of the result."""
        if x.ndim == 0:
            raise ValueError("all_to_all needs an array with rows, got a scalar")
        sends = checked_bounds(send_bounds, len(x), self.size)
        receives = checked_bounds(receive_bounds, receive_bounds[-1], self.size)
        own = [bounds[self.rank + 1] - bounds[self.rank] for bounds in (sends, receives)]
        if own[0] != own[1]:
            raise ValueError(
                f"all_to_all: rank {self.rank} sends {own[0]} rows to itself and receives {own[1]}"
            )
        out = checked_out("all_to_all", out, (receives[-1], *x.shape[1:]), x.dtype, x)
        given = copied(x) if share_memory(x, out) else x
        steps = self._all_to_all_steps(given, sends, receives, out)
        return self._start("all_to_all", x, steps, out, blocking)

    @collective
    def broadcast(self, x: Array, root: int = 0, *, blocking: bool = True) -> Any:
        """x of rank `root` on every rank, in place; returns x."""
        self._check_rank("broadcast", root)
        checked_out("broadcast", x, x.shape, x.dtype, x)
        if self.size == 1:
            return self._given("broadcast", x, x, blocking)
        return self._start("broadcast", x, self._broadcast_steps(x, root), x, blocking)

    @bordered
    def send(self, x: Array, dest: int, tag: int = 0, *, blocking: bool = True) -> Any:
        """Sends x to rank `dest`, which receives it with the same tag, shape and type."""
        self._check_rank("send", dest)
        steps = self._send(contiguous(x).reshape(-1), dest, tag)
        return self._start("send", x, steps, None, blocking)

    @bordered
    def recv(self, out: Array, source: int, tag: int = 0, *, blocking: bool = True) -> Any:
        """Receives into out what rank `source` sent with this tag; returns out."""
        self._check_rank("recv", source)
        checked_out("recv", out, out.shape, out.dtype, out)
        return self._start("recv", None, self._recv_steps(out, source, tag), out, blocking)

    def barrier(self) -> None:
        """Returns once every rank has called it."""
        self._start("barrier", None, self._barrier(), None, True)

    def _all_gather_steps(self, x: Array, axis: int, bounds: Bounds, out: Array) -> Steps:
        outer, inner = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
        lengths = [outer * inner * (b - a) for a, b in pairwise(bounds)]
        target = out if outer == 1 and out.flags.c_contiguous else beside(out, out.size, out.dtype)
        flat, x = target.reshape(-1), contiguous(x).reshape(-1)
        own = flat[sum(lengths[: self.rank]) :][: x.size]
        if share_memory(x, flat) and address(x) != address(own):
            x = copied(x)
        steps = self._all_gather(x, lengths, flat)
        return steps if target is out else side_by_side(steps, flat, lengths, axis, bounds, out)

    def _all_to_all_steps(self, x: Array, sends: Bounds, receives: Bounds, out: Array) -> Steps:
        row = math.prod(x.shape[1:])
        target = direct(out, out.dtype)
        steps = self._all_to_all(
            contiguous(x).reshape(-1),
            tuple(row * b for b in sends),
            target.reshape(-1),
            tuple(row * b for b in receives),
        )
        return delivered(steps, target, False, out)

    def _broadcast_steps(self, x: Array, root: int) -> Steps:
        target = contiguous(x)
        return delivered(self._broadcast(target.reshape(-1), root), target, False, x)

    def _recv_steps(self, out: Array, source: int, tag: int) -> Steps:
        target = direct(out, out.dtype)
        return delivered(self._recv(target.reshape(-1), source, tag), target, False, out)
