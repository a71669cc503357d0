"""plait checkpoint: what the library found, as tables and lines on standard output."""

import json
from pathlib import Path

import click

from plait import checkpoint
from plait.report.text import bytes_text, count_text


def inspect(path: Path) -> int:
    """Prints what a checkpoint holds, a line for each parameter."""
    folder = checkpoint.find(path, _say)
    manifest, rows = checkpoint.summary(folder)
    parameters = sum(a.size for a in manifest.arrays.values() if a.kind == "master")
    click.echo(f"checkpoint  {folder}")
    click.echo(f"step        {manifest.step}")
    click.echo(f"written by  plait {manifest.plait}")
    click.echo(f"metadata    {json.dumps(manifest.metadata)}")
    click.echo(f"parameters  {parameters:,} ({count_text(parameters)})")
    click.echo(f"bytes       {bytes_text(manifest.nbytes)} in {len(manifest.file_ends())} files\n")
    lines = [("name", "shape", "type", "kinds", "pieces", "bytes")]
    for row in rows:
        shape, kinds = " x ".join(map(str, row.shape)) or "scalar", ", ".join(row.kinds)
        lines.append((row.name, shape, row.dtype, kinds, str(row.pieces), bytes_text(row.nbytes)))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        words = [f"{word:<{width}}" for word, width in zip(line[:4], widths[:4])]
        words += [f"{word:>{width}}" for word, width in zip(line[4:], widths[4:])]
        click.echo("  ".join(words))
    return 0


def verify(path: Path) -> int:
    """Prints every problem of a checkpoint, or that there is none. Of a run that is the newest that
    can be read, and newer ones are problems."""
    passed_over: list[str] = []
    folder = checkpoint.find(path, passed_over.append)
    report = checkpoint.verify(folder)
    for problem in (*passed_over, *report.problems):
        _say(problem)
    state = f"{len(report.problems)} damaged or missing" if report.problems else "whole"
    click.echo(
        f"{folder}: {state}; step {report.step}, {report.files} files, {report.pieces} pieces, "
        f"{bytes_text(report.nbytes)} read"
    )
    return 2 if passed_over or report.problems else 0


def export(path: Path, out: Path) -> int:
    """Writes the weights as one file."""
    folder = checkpoint.find(path, _say)
    click.echo(f"{out}: {bytes_text(checkpoint.export(folder, out))} from {folder}")
    return 0


def _say(line: str) -> None:
    click.echo(line, err=True)
