"""The commands and their options; each body checks what only the command line knows, calls on."""

import math
import os
import sys
from pathlib import Path
from typing import Any

import click

from plait import __version__
from plait.errors import UserError
from plait.job.hook import USER_ERROR
from plait.job.world import SPAWNED, World, asked_to_stop

_COLDEST = 1e-6  # temperature; logits divided by less may overflow
_PATH = click.Path(path_type=Path)
_RANKS = click.option(
    "--ranks",
    type=click.IntRange(min=1),
    metavar="N",
    help="Ranks to start on this machine; under mpirun or srun it must equal their number.",
)
_RUN = click.argument("run", type=_PATH)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="plait")
def plait() -> None:
    """Trains neural networks over MPI: data x tensor x pipeline, the same bits at every layout."""


@plait.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@_RANKS
@click.option("--dry-run", is_flag=True, help="Check everything and print sizes, without MPI.")
@click.option("--fresh", is_flag=True, help="Move an earlier run of this name aside first.")
@click.option(
    "--other-bits", is_flag=True, help="Go on even where grains or numerics have changed."
)
@click.pass_obj
def train(
    world: World,
    config: Path,
    overrides: tuple[str, ...],
    ranks: int | None,
    dry_run: bool,
    fresh: bool,
    other_bits: bool,
) -> int:
    """Train as CONFIG (TOML) says, or go on where the run stopped.

    KEY=VALUE changes keys of the config, such as train.steps=1000 or layout=2x2x1.
    """
    loaded = _load(config, overrides)
    if dry_run:
        if world.speaks:
            from plait.train.dry_run import rehearse

            started = world.size if world.size > 1 else None
            rehearse(loaded, ranks if ranks is not None else started)
        return 0
    spawns = _must_spawn(world, ranks)
    if world.speaks:
        from plait.train.checks import check_folder, check_layout

        check_layout(loaded, ranks or world.size)
        check_folder(loaded)
    if spawns:
        return _spawn(ranks)
    from plait.job.signals import StopRequest

    def say(text: str) -> None:
        if world.speaks and SPAWNED not in os.environ:  # else the process that was asked says it
            click.echo(f"plait: {text}", err=True)

    with StopRequest(say, lambda: world.abort(3), asked_to_stop) as stop:
        from plait.train import run  # a part of a second, in which a signal may come

        return run.train(loaded, fresh=fresh, other_bits=other_bits, stop=stop)


@plait.command()
@_RUN
@_RANKS
@click.pass_obj
def evaluate(world: World, run: Path, ranks: int | None) -> int:
    """Evaluate the newest checkpoint of RUN (runs/NAME) on its held-out data."""
    if _must_spawn(world, ranks):
        return _spawn(ranks)
    from plait.train.run import evaluate

    evaluate(run)
    return 0


@plait.command()
@_RUN
@click.option("--prompt", default="", help="The text to go on from.")
@click.option("--tokens", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--temperature", type=float, default=0.8, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.pass_obj
def generate(
    world: World, run: Path, prompt: str, tokens: int, temperature: float, seed: int
) -> int:
    """Write text with the newest checkpoint of RUN (runs/NAME)."""
    if temperature != 0 and not _COLDEST <= temperature < math.inf:
        raise UserError(
            f"--temperature {temperature:g} must be 0, for the likeliest token, or a number from "
            f"{_COLDEST:g} on"
        )
    prompt = _text("--prompt", prompt)
    if not world.speaks:  # one rank does it all
        return 0
    from plait.train.run import generate

    generate(run, prompt, tokens, temperature, seed)
    return 0


@plait.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--layouts", help="Such as 1x1x1,2x1x1,1x2x1; the first one is the reference.")
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True)
@click.pass_obj
def verify(
    world: World, config: Path, overrides: tuple[str, ...], layouts: str | None, steps: int
) -> int:
    """Train CONFIG for some steps at each layout and compare every tensor's bits.

    Without --layouts: one rank, and the layout of CONFIG. Exit code 2 where bits differ: then the
    first tensor that does is named, with the rank and how far it is off.
    """
    names = layouts.split(",") if layouts is not None else ["1x1x1", ""]
    wanted = [(f"layout={name.strip()}",) if name else () for name in names]
    configs = [_load(config, (*overrides, *layout)) for layout in wanted]
    needed = max(each.layout.ranks or world.size for each in configs)
    if needed > world.size > 1:
        raise UserError(
            f"these layouts need {needed} ranks, the launcher started {world.size}: start {needed}"
        )
    if world.speaks:
        from plait.train.checks import check_layout

        for each in configs:
            check_layout(each, each.layout.ranks or needed)
    if needed > world.size:
        return _spawn(needed)
    from plait.verify import verify

    return 0 if verify(configs, steps) else USER_ERROR


@plait.command()
@click.pass_obj
def doctor(world: World) -> int:
    """Look at Python, MPI, Slurm and this machine; name what is wrong and how to mend it."""
    if not world.speaks:
        return 0
    from .doctor import examine

    return examine()


@plait.group()
def checkpoint() -> None:
    """Look into a checkpoint, check it, export it."""


@checkpoint.command()
@click.argument("path", type=_PATH)
@click.pass_obj
def inspect(world: World, path: Path) -> int:
    """List the arrays of PATH: a checkpoint, or a run, whose newest is taken."""
    from .show import inspect

    return inspect(path) if world.speaks else 0


@checkpoint.command("verify")
@click.argument("path", type=_PATH)
@click.pass_obj
def verify_checkpoint(world: World, path: Path) -> int:
    """Read all of PATH and compare every hash; exit code 2 if anything is damaged."""
    from .show import verify

    return verify(path) if world.speaks else 0


@checkpoint.command()
@click.argument("path", type=_PATH)
@click.argument("out", type=_PATH)
@click.pass_obj
def export(world: World, path: Path, out: Path) -> int:
    """Write the weights of PATH to OUT, one safetensors file of whole arrays."""
    from .show import export

    return export(path, out) if world.speaks else 0


def _text(name: str, value: str) -> str:
    """An argument whose bytes may be UTF-8 in a locale of another encoding."""
    try:
        return os.fsencode(value).decode() if _undecoded(value) else value
    except UnicodeDecodeError:
        raise UserError(f"{name} {value!r} is not text: it has bytes that are not UTF-8") from None


def _undecoded(value: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in value)


def _load(path: Path, overrides: tuple[str, ...]) -> Any:
    wrong = [text for text in overrides if "=" not in text]
    if wrong:
        raise UserError(f"{wrong[0]!r} is not of the form key=value, such as train.steps=1000")
    from plait.train.config import load

    return load(path, overrides)


def _must_spawn(world: World, ranks: int | None) -> bool:
    """Whether this process is to start the ranks. Raises UserError where a launcher started another
    number of them."""
    if ranks is None or ranks == world.size:
        return False
    if world.size > 1:
        raise UserError(
            f"--ranks {ranks}, but the launcher started {world.size}: leave --ranks out under "
            "mpirun and srun, or make them equal"
        )
    return True


def _spawn(ranks: int | None) -> int:
    from plait.launch.spawn import spawn

    assert ranks is not None
    return spawn(sys.argv[1:], ranks)
