"""From sys.argv to an exit code: finds the world, runs the command, ends all ranks as one."""

import os
import sys
from collections.abc import Sequence
from types import TracebackType

import click

from plait.comm.launcher import launcher
from plait.errors import UserError
from plait.job.hook import USER_ERROR, end, install_abort_hook
from plait.job.signals import hold_signals, ignore_signals
from plait.job.streams import make_streams_last, output_lost
from plait.job.world import SPAWNED, World, silent_worlds, start

from .commands import plait

_END_SECONDS = 60.0  # for all ranks to be done


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (default: this process's) and returns the exit code.

    Under a launcher every rank calls it; what concerns all is said once. An error does not return:
    it ends the process, and with it all ranks.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    sys.path.append(os.getcwd())  # for models of the user's own: "package.module:function"
    world = World(speaks=launcher().rank == 0)
    make_streams_last()
    try:
        if launcher().launched and arguments[:1] == ["train"]:
            hold_signals()
        world = start()
        install_abort_hook(world)
        _check_size(world)
        code = _run(arguments, world)
        ignore_signals()
        _check_output(arguments)
        if world.comm is not None and world.meet(_END_SECONDS) and code:
            world.leave(code)
        return code
    except (Exception, KeyboardInterrupt) as error:
        end(world, error.with_traceback(_below_click(error.__traceback__)))


def _run(arguments: list[str], world: World) -> int:
    """The command's exit code. Help and mistakes in the command line are told once."""
    if not world.speaks and (not arguments or {"--help", "-h", "--version"} & set(arguments)):
        return 0
    try:
        code = plait.main(arguments, prog_name="plait", standalone_mode=False, obj=world)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USER_ERROR
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see `{context.command_path} --help`" if context is not None else ""
        raise UserError(f"{error.format_message().rstrip('.')}{hint}") from None
    except click.Abort:
        raise KeyboardInterrupt from None
    return code if isinstance(code, int) else 0


def _check_output(arguments: list[str]) -> None:
    """Raises UserError where a result was lost. A training run's are in its folder."""
    if arguments[:1] != ["train"] and (error := output_lost()):
        raise UserError(
            f"standard output cannot be written ({error.strerror}): the result is lost or cut short"
        )


def _below_click(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the command's own function on."""
    ours = (os.path.dirname(click.__file__), __file__)
    while trace and trace.tb_next and trace.tb_frame.f_code.co_filename.startswith(ours):
        trace = trace.tb_next
    return trace


def _check_size(world: World) -> None:
    """Raises UserError where more ranks were started than MPI sees."""
    started = launcher()
    if world.comm is not None and (fault := silent_worlds(started, world.size)):
        raise UserError(fault)
    asked = os.environ.get(SPAWNED)
    if asked is not None and world.size != int(asked):
        raise UserError(
            f"--ranks {asked} started {asked} processes, but MPI sees a world of {world.size}: the "
            "mpiexec that was found and the MPI that mpi4py loads do not belong together; "
            "`plait doctor` shows both"
        )
