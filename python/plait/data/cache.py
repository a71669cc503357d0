"""The cache: prepared data under $XDG_CACHE_HOME or ~/.cache, in plait/, one folder per key.

An entry is written under a temporary name, synced and renamed, so it is there whole or not at
all and jobs may race for it; one that fails its own manifest is built anew. Where the cache
folder cannot be written, a private folder under the temporary directory takes its place.
"""

import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from plait.data.bundle import Bundle, sampled_digest
from plait.errors import UserError

FORMAT = 1  # of every entry; part of every key
_MANIFEST = "entry.json"
_HASHED_BYTES = 1 << 28
_PARTIAL = ".partial-"
_STALE_SECONDS = 86400.0

Write = Callable[[Path], dict[str, Any]]


def key_of(*parts: object) -> str:
    """A short name for the entry that these values (of JSON) describe."""
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:32]


def identity(files: Iterable[tuple[str, str]]) -> tuple[int, str]:
    """The bytes of (name, path) files and a hash of names and content; beyond 256 MiB paths,
    sizes and times of change stand for the content."""
    listed = [(name, path, os.stat(path)) for name, path in files]
    total = sum(status.st_size for _, _, status in listed)
    digest = hashlib.sha256()
    for name, path, status in listed:
        digest.update(f"{name}\0{status.st_size}\0".encode(errors="surrogateescape"))
        if total > _HASHED_BYTES:
            where = f"{os.path.abspath(path)}\0{status.st_mtime_ns}\0"
            digest.update(where.encode(errors="surrogateescape"))
        else:
            digest.update(Path(path).read_bytes())
    return total, digest.hexdigest()


def obtain(key: str, write: Write, building: str = "") -> Bundle:
    """The entry of that key; if there is none, `write` fills a folder with its files.

    write returns the entry's meta; its OSErrors are taken to be about that folder, so it turns
    those of the data it reads into UserError. building: a line to print before it is called.
    Raises UserError where neither the cache nor the temporary folder can be written.
    """
    home = cache_folder()
    for folder in (home, _temporary_folder(make=False)):
        if folder is not None and (found := open_entry(folder / key)) is not None:
            return found
    if building:
        say(building)
    if home is not None:
        try:
            return _build(home, key, write)
        except OSError as error:
            say(f"the cache folder {home} cannot be written ({error.strerror or error})")
    temporary = _temporary_folder(make=True)
    assert temporary is not None
    say(f"keeping prepared data in {temporary} (set XDG_CACHE_HOME to a folder that lasts)")
    try:
        return _build(temporary, key, write)
    except OSError as error:
        raise UserError(
            f"no place for prepared data: {temporary}: {error.strerror or error}; "
            "set XDG_CACHE_HOME to a folder with room"
        ) from error


def open_entry(folder: Path) -> Bundle | None:
    """The finished entry in a folder; None where it is missing, cut short or of other content."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        files = {name: (str(folder / name), int(n)) for name, n in manifest["files"].items()}
        bundle = Bundle(files, manifest["meta"], manifest["digest"], manifest["fingerprint"])
        return bundle if bundle.visible() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def cache_folder() -> Path | None:
    """plait's folder in the user's cache; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG specification: anything else is to be ignored
        return Path(base) / "plait"
    home = os.path.expanduser("~")
    return Path(home) / ".cache" / "plait" if os.path.isabs(home) else None


def say(line: str) -> None:
    print(f"plait: {line}", file=sys.stderr, flush=True)


def _temporary_folder(make: bool) -> Path | None:
    """A folder of this user alone: one of a fixed name, or a fresh one if that is not ours."""
    folder = Path(tempfile.gettempdir()) / f"plait-{os.getuid()}"
    if make:
        folder.mkdir(mode=0o700, exist_ok=True)
    try:
        status = folder.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if ours and not status.st_mode & 0o022:
        return folder
    return Path(tempfile.mkdtemp(prefix="plait-")) if make else None


def _build(parent: Path, key: str, write: Write) -> Bundle:
    parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(parent)
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=parent))
    try:
        meta = write(partial)
        _seal(partial, meta)
        return _publish(partial, parent / key)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _seal(folder: Path, meta: dict[str, Any]) -> None:
    """Writes the manifest, with a hash of everything, and syncs all files to disk."""
    paths = sorted(folder.iterdir())
    content = hashlib.sha256()
    for path in paths:
        content.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
            os.fsync(file.fileno())
    files = {path.name: path.stat().st_size for path in paths}
    manifest = {
        "files": files,
        "meta": meta,
        "digest": sampled_digest({name: (str(folder / name), n) for name, n in files.items()}),
        "fingerprint": content.hexdigest(),
    }
    with open(folder / _MANIFEST, "x") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _publish(partial: Path, final: Path) -> Bundle:
    """Renames the finished folder into place; another job's entry, if whole, wins."""
    for _ in range(8):
        try:
            partial.rename(final)
            break
        except OSError:
            if (found := open_entry(final)) is not None:
                return found
            if not final.exists():
                continue
            broken = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=final.parent))
            try:
                final.rename(broken / "broken")
            except FileNotFoundError:
                pass  # another job moved it away first
            finally:
                shutil.rmtree(broken, ignore_errors=True)
    found = open_entry(final)
    if found is None:
        raise OSError(f"{final} does not keep what is written to it")
    return found


def _remove_stale(parent: Path) -> None:
    """Removes what jobs that were killed more than a day ago left half written."""
    for path in parent.glob(_PARTIAL + "*"):
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            continue  # its owner has just finished
