"""What is said to people: lines on standard error, from rank 0 only."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import rich.console


class Screen:
    """Speaks on rank 0, is silent elsewhere. file: standard error unless given."""

    def __init__(self, *, active: bool = True, file: TextIO | None = None):
        self.console = _console(file) if active else None

    @property
    def live(self) -> bool:
        """Whether a progress bar can move here."""
        return self.console is not None and self.console.is_interactive

    def say(self, text: str) -> None:
        """Prints text as it is; lines are not broken."""
        with self.tolerant():
            if self.console is not None:
                self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def tolerant(self) -> Iterator[None]:
        """Goes silent where the terminal is gone: a run outlives its window."""
        try:
            yield
        except OSError:
            self.console = None

    def header(self, facts: Mapping[str, object]) -> None:
        """The first lines of a run: what -> value, in columns."""
        width = max((len(what) for what in facts), default=0)
        for what, value in facts.items():
            self.say(f"{what:<{width}}  {value}")


def _console(file: TextIO | None) -> "rich.console.Console":
    from rich.console import Console  # a tenth of a second that other ranks can save

    class Lasting(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process

    return Lasting(file=file, stderr=file is None)
