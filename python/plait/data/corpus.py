"""A text corpus: which files it has, which bytes are held out, and those bytes in pieces of text.

The order of files, the split and the cuts between pieces follow from the files alone, and no
more than one piece is in memory at a time.
"""

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass

from plait.data.cache import identity
from plait.data.dataset import no_file, reading
from plait.errors import UserError

HELD_OUT_EVERY = 20  # 5 %: every 20th file, or the last 20th of each where there are fewer
_PIECE_BYTES = 1 << 16
_SNIFF_BYTES = 8192
_TESTS = frozenset({"test", "tests", "idle_test"})
_NOT_SOURCES = frozenset({"site-packages", "dist-packages", "__pycache__"}) | _TESTS


@dataclass(frozen=True)
class Span:
    """Bytes start..stop of a file: one document."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class Corpus:
    """name: for messages. root: folder that the sorted file names are relative to. skipped: how
    many files of the folder are no text."""

    name: str
    root: str
    files: tuple[str, ...]
    skipped: int = 0

    def paths(self) -> list[str]:
        return [os.path.join(self.root, file) for file in self.files]

    def spans(self) -> tuple[list[Span], list[Span]]:
        """(training, held out): by file from 20 files on, by position in each file below."""
        training: list[Span] = []
        held_out: list[Span] = []
        by_file = len(self.files) >= HELD_OUT_EVERY
        for number, path in enumerate(self.paths()):
            size = os.path.getsize(path)
            if by_file:
                part = held_out if (number + 1) % HELD_OUT_EVERY == 0 else training
                part.append(Span(path, 0, size))
            else:
                cut = _line_start(path, size - size // HELD_OUT_EVERY, size)
                training.append(Span(path, 0, cut))
                if cut < size:
                    held_out.append(Span(path, cut, size))
        return training, held_out

    def identity(self) -> tuple[int, str]:
        return identity(zip(self.files, self.paths()))


def find(path: str) -> Corpus:
    """The corpus of a file, of a folder (its text files, hidden ones left out) or of a name.

    Raises UserError where there is no such path or no text in it.
    """
    skipped = 0
    if path == "python-stdlib":
        root = sysconfig.get_paths()["stdlib"]
        names = [name for name in _walk(root, _NOT_SOURCES) if name.endswith(".py")]
    elif os.path.isdir(path):
        root = path
        there = _walk(root, frozenset())
        names = [name for name in there if _is_text(os.path.join(root, name))]
        skipped = len(there) - len(names)
    elif os.path.isfile(path):
        root, name = os.path.split(path)
        names = [name]
        if not _is_text(path):
            raise UserError(
                f"text {path!r} is not UTF-8: it has zero bytes; token files are data kind "
                '"tokens", text in another encoding goes through iconv -t UTF-8 first'
            )
    else:
        raise UserError(
            f"{no_file(f'text {path!r}', path)}; give a file, a folder or the named corpus "
            '"python-stdlib"'
        )
    corpus = Corpus(path, root, tuple(names), skipped)
    if not any(os.path.getsize(file) for file in corpus.paths()):
        raise UserError(f"text {path!r} is empty: no file in {root or path} with text in it")
    return corpus


def pieces(spans: list[Span], lost: list[int] | None = None) -> Iterator[tuple[str, bool]]:
    """The text of the spans in pieces of up to 64 KiB, and whether a piece ends its document.

    Pieces end with a line, else before a space, else after a character. Bytes that are not
    UTF-8 are left out; how many goes to `lost`, a number for each piece that had some.
    """
    lost = [] if lost is None else lost
    for span in spans:
        with reading(span.path), open(span.path, "rb") as file:
            file.seek(span.start)
            left = span.stop - span.start
            block = b""
            while True:
                read = file.read(min(_PIECE_BYTES - len(block), left))
                block += read
                left -= len(read)
                if left == 0 or not read:
                    yield _decoded(block, lost), True
                    break
                cut = _cut(block)
                yield _decoded(block[:cut], lost), False
                block = block[cut:]


def _decoded(block: bytes, lost: list[int]) -> str:
    try:
        return block.decode()
    except UnicodeDecodeError:
        text = block.decode(errors="ignore")
        lost.append(len(block) - len(text.encode()))
        return text


def _cut(block: bytes) -> int:
    """Where a piece ends inside a full block; at least 1."""
    return block.rfind(b"\n") + 1 or max(block.rfind(b" "), 0) or _character_end(block)


def _character_end(block: bytes) -> int:
    """The length of the block without a UTF-8 character that is cut off at its end."""
    for back in range(1, min(4, len(block))):
        byte = block[-back]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(block) - back if needed > back else len(block)
        if byte < 0x80:
            break
    return len(block)


def _line_start(path: str, position: int, size: int) -> int:
    """The first start of a line from position on that is not the end; else of a character."""
    with open(path, "rb") as file:
        file.seek(position)
        block = file.read(_PIECE_BYTES)
    after = position + block.find(b"\n") + 1
    if position < after < size:
        return after
    while block[:1] and 0x80 <= block[0] < 0xC0:
        position, block = position + 1, block[1:]
    return position


def _walk(root: str, skipped: frozenset[str]) -> list[str]:
    """Regular files under root by relative path, sorted; no hidden ones, no loops of links."""
    names = []
    for folder, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if name not in skipped and name[0] != "."]
        paths = [os.path.join(folder, name) for name in files if name[0] != "."]
        names += [os.path.relpath(path, root) for path in paths if os.path.isfile(path)]
    return sorted(names)


def _refuse(error: OSError) -> None:
    """A folder that cannot be read is no empty one."""
    raise error


def _is_text(path: str) -> bool:
    with open(path, "rb") as file:
        return b"\0" not in file.read(_SNIFF_BYTES)
