"""plait checkpoint: what the library found, as tables and lines on standard output."""

import json
from pathlib import Path

import click

from plait import checkpoint
from plait.report.text import bytes_text, count_text


def inspect(path: Path) -> int:
    """Prints what a checkpoint holds, a line for each parameter."""
    from rich.console import Console
    from rich.table import Table

    folder = checkpoint.find(path)
    manifest, rows = checkpoint.summary(folder)
    parameters = sum(a.size for a in manifest.arrays.values() if a.kind == "master")
    click.echo(f"checkpoint  {folder}")
    click.echo(f"step        {manifest.step}")
    click.echo(f"written by  plait {manifest.plait}")
    click.echo(f"metadata    {json.dumps(manifest.metadata)}")
    click.echo(f"parameters  {parameters:,} ({count_text(parameters)})")
    click.echo(f"bytes       {bytes_text(manifest.nbytes)} in {len(manifest.file_ends())} files\n")
    table = Table(box=None, pad_edge=False)
    for title in ("name", "shape", "type", "kinds"):
        table.add_column(title, no_wrap=True)
    for title in ("pieces", "bytes"):
        table.add_column(title, no_wrap=True, justify="right")
    for row in rows:
        shape, kinds = " x ".join(map(str, row.shape)) or "scalar", ", ".join(row.kinds)
        sizes = (str(row.pieces), bytes_text(row.nbytes))
        table.add_row(row.name, shape, row.dtype, kinds, *sizes)
    terminal = Console().is_terminal
    Console(width=None if terminal else 200, highlight=False, markup=False).print(table)
    return 0


def verify(path: Path) -> int:
    """Prints every problem of a checkpoint, or that there is none."""
    folder = checkpoint.find(path)
    report = checkpoint.verify(folder)
    for problem in report.problems:
        click.echo(problem, err=True)
    state = f"{len(report.problems)} damaged or missing" if report.problems else "whole"
    click.echo(
        f"{folder}: {state}; step {report.step}, {report.files} files, {report.pieces} pieces, "
        f"{bytes_text(report.nbytes)} read"
    )
    return 2 if report.problems else 0


def export(path: Path, out: Path) -> int:
    """Writes the weights as one file."""
    folder = checkpoint.find(path)
    click.echo(f"{out}: {bytes_text(checkpoint.export(folder, out))} from {folder}")
    return 0
