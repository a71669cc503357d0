"""What ends a job: an exception on any rank ends all of them, told once and with its place.

A UserError is one message and exit code 2; anything else is a traceback with rank and host and exit
code 3. Nothing here waits for ranks that may never come.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from plait.comm.launcher import launcher
from plait.errors import UserError

from .signals import ignore_signals
from .streams import tell
from .world import World, claim, flush

if TYPE_CHECKING:
    from mpi4py import MPI

USER_ERROR, FAILED = 2, 3  # exit codes
_TOGETHER_SECONDS = 1.0  # for the other ranks to meet the same error
_ALONE_SECONDS = 3.0  # for ranks that MPI does not know of to come as far
_STAGGER_SECONDS, _STEP_SECONDS = 0.2, 0.3  # so that one rank speaks where many fail

_guarded = False  # the hook is there, or left to somebody else


def install_abort_hook(world: World) -> None:
    """From here on an uncaught exception in any thread of any rank ends the job."""
    global _guarded
    _guarded = True

    def uncaught(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        end(world, error.with_traceback(trace))

    def uncaught_in_thread(found: threading.ExceptHookArgs) -> None:
        if found.exc_value is not None and not isinstance(found.exc_value, SystemExit):
            end(world, found.exc_value)

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    if not faulthandler.is_enabled():
        faulthandler.enable()


def guard(comm: MPI.Intracomm) -> None:
    """The hook for a script that starts its ranks by itself, unless it has one of its own, or is a
    person at a prompt. Collective over comm; after the first time it does nothing."""
    global _guarded
    if _guarded or comm.size == 1:
        return
    world = World(comm.rank, comm.size, comm.rank == 0, comm.Dup())
    _guarded = True
    if sys.excepthook is sys.__excepthook__ and not hasattr(sys, "ps1"):
        install_abort_hook(world)


def end(world: World, error: BaseException) -> NoReturn:
    """Tells of the error and ends all ranks."""
    if isinstance(error, UserError):
        _end_for_user(world, str(error))
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted\n"
    else:
        text = "".join(traceback.format_exception(error))
    _wait_for_others(world)
    _say_and_abort(world, f"[{world.name}] {text}", FAILED)


def _end_for_user(world: World, message: str) -> NoReturn:
    """The rank that speaks prints the message at once. If all ranks met the error they leave in
    order, silently; if not, whoever did ends the others."""
    ignore_signals()
    if world.speaks:
        claim(USER_ERROR)
        _print(f"plait: {message}\n")
    if world.size == 1 and (launcher().size or 1) > 1:
        time.sleep(_ALONE_SECONDS)  # worlds of one, and the launcher may end all with the first
    if world.meet(_TOGETHER_SECONDS):
        world.leave(USER_ERROR)
    if world.speaks:
        _let_it_through(world)
        world.abort(USER_ERROR)
    _wait_for_others(world)  # the one that speaks would have ended this process by now
    _say_and_abort(world, f"plait: [{world.name}] {message}\n", USER_ERROR)


def _say_and_abort(world: World, text: str, code: int) -> NoReturn:
    """Unless another rank was first: that one ends this process soon."""
    if claim(code):
        _print(text)
        _let_it_through(world)
    else:
        time.sleep(_TOGETHER_SECONDS)
    world.abort(code)


def _wait_for_others(world: World) -> None:
    """The lower the rank the sooner it speaks, and then ends the rest."""
    if world.rank:
        time.sleep(_STAGGER_SECONDS + _STEP_SECONDS * min(world.rank, 10))


def _let_it_through(world: World) -> None:
    """What a rank printed must reach the launcher before its pipes close."""
    if world.size > 1:
        time.sleep(0.1)


def _print(text: str) -> None:
    flush()
    tell(text)
