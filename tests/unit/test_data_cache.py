"""The cache and its sharing: whole entries only, races, damage, no home, ranks that see no file."""

import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.data import cache
from plait.data.bundle import Bundle, _block_starts, sampled_digest
from plait.data.cache import key_of, obtain, open_entry
from plait.data.share import all_raise, build_once
from plait.errors import UserError


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A cache folder and a temporary folder of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return {"home": tmp_path / "cache" / "plait", "tmp": tmp_path / "tmp"}


def writer(content: bytes = b"abc") -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "a.bin").write_bytes(content)
        (folder / "empty").write_bytes(b"")
        return {"answer": 42}

    return write


def refuse(folder: Path) -> dict[str, Any]:
    raise AssertionError("the entry was built again")


def test_an_entry_is_built_once(places: dict[str, Path]) -> None:
    first = obtain("key", writer())
    again = obtain("key", refuse)
    assert again == first
    assert first.meta == {"answer": 42}
    assert first.path("a.bin").read_bytes() == b"abc"
    assert [path.name for path in places["home"].iterdir()] == ["key"]


def test_keys_differ() -> None:
    assert len({key_of("a", 1), key_of("a", 2), key_of("b", 1), key_of("a", [1])}) == 4


@pytest.mark.parametrize(
    "damage", ["shorter", "longer", "gone", "changed", "manifest", "no manifest"]
)
def test_a_damaged_entry_is_built_anew(places: dict[str, Path], damage: str) -> None:
    obtain("key", writer())
    path, manifest = (places["home"] / "key" / name for name in ("a.bin", "entry.json"))
    if damage == "gone":
        path.unlink()
    elif damage == "manifest":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    elif damage == "no manifest":
        manifest.unlink()
    else:
        path.write_bytes({"shorter": b"ab", "longer": b"abcd", "changed": b"abx"}[damage])
    assert open_entry(places["home"] / "key") is None
    assert obtain("key", writer()).path("a.bin").read_bytes() == b"abc"
    assert [path.name for path in places["home"].iterdir()] == ["key"]


def test_a_failed_build_leaves_nothing(places: dict[str, Path]) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "a.bin").write_bytes(b"half")
        raise ValueError("the data is bad")

    with pytest.raises(ValueError, match="the data is bad"):
        obtain("key", fail)
    assert list(places["home"].iterdir()) == []


def test_of_two_jobs_the_first_wins(places: dict[str, Path]) -> None:
    def overtaken(folder: Path) -> dict[str, Any]:
        obtain("key", writer(b"first"))
        return writer(b"second")(folder)

    assert obtain("key", overtaken).path("a.bin").read_bytes() == b"first"
    assert [path.name for path in places["home"].iterdir()] == ["key"]


def test_many_jobs_at_once(places: dict[str, Path]) -> None:
    found: list[bytes] = []
    together = threading.Barrier(8)

    def job(number: int) -> None:
        def write(folder: Path) -> dict[str, Any]:
            together.wait(20)
            return writer(b"%d" % number * 1000)(folder)

        found.append(obtain("key", write).path("a.bin").read_bytes())

    run_all([lambda number=number: job(number) for number in range(8)])
    assert len(set(found)) == 1
    assert [path.name for path in places["home"].iterdir()] == ["key"]


def test_old_leftovers_are_removed(places: dict[str, Path]) -> None:
    old, new = places["home"] / ".partial-old", places["home"] / ".partial-new"
    for path in (old, new):
        path.mkdir(parents=True)
    os.utime(old, (0, 0))
    obtain("key", writer())
    assert new.exists()
    assert not old.exists()


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_folder() == tmp_path / "cache" / "plait"
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/is/ignored"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.cache_folder() == tmp_path / ".cache" / "plait"
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user without a home
    assert cache.cache_folder() is None


@pytest.mark.parametrize("why", ["a file is in the way", "no home", "disk full"])
def test_a_temporary_folder_takes_its_place(
    places: dict[str, Path],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    calls = []

    def write(folder: Path) -> dict[str, Any]:
        calls.append(folder)
        if why == "disk full" and len(calls) == 1:
            raise OSError(28, "No space left on device")
        return writer()(folder)

    if why == "a file is in the way":
        places["home"].parent.write_text("")
    if why == "no home":
        monkeypatch.setattr(cache, "cache_folder", lambda: None)
    bundle = obtain("key", write)
    folder = places["tmp"] / f"plait-{os.getuid()}"
    assert bundle.path("a.bin").parent == folder / "key"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert obtain("key", refuse) == bundle
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if str(folder) in line]
    assert len(said) == (1 if why == "no home" else 2)


def test_a_temporary_folder_of_others_is_not_used(places: dict[str, Path], tmp_path: Path) -> None:
    places["home"].parent.write_text("")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (places["tmp"] / f"plait-{os.getuid()}").symlink_to(theirs)
    bundle = obtain("key", writer())
    assert bundle.path("a.bin").is_relative_to(places["tmp"])
    assert list(theirs.iterdir()) == []


def test_no_place_at_all(places: dict[str, Path]) -> None:
    def full(folder: Path) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"No space left.*XDG_CACHE_HOME"):
        obtain("key", full)


def test_the_digest_sees_sizes_and_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a"
    content = bytearray(10 << 20)
    path.write_bytes(content)
    files = {"a": (str(path), len(content))}
    first = sampled_digest(files)
    for at in (0, _block_starts(len(content))[500] + 4095, len(content) - 1):
        content[at] = 1
        path.write_bytes(content)
        assert sampled_digest(files) != first
        content[at] = 0
    path.write_bytes(content[:-1])
    with pytest.raises(OSError, match="not 10485760 bytes"):
        sampled_digest(files)


# --- sharing, with ranks as threads ---


class Ranks:
    """A world of threads; host names by rank."""

    def __init__(self, hosts: list[str]) -> None:
        self.hosts = hosts
        self.local = threading.local()
        self.barrier = threading.Barrier(len(hosts))
        self.slots: list[Any] = [None] * len(hosts)
        self.broadcasts = 0

    @property
    def host(self) -> str:
        return self.hosts[self.local.rank]

    def run(self, function: Callable[["ThreadComm"], Any]) -> list[Any]:
        """What function(comm) returned, or raised, on every rank."""
        results: list[Any] = [None] * len(self.hosts)

        def rank(number: int) -> None:
            self.local.rank = number
            try:
                results[number] = function(ThreadComm(self, number))
            except Exception as error:
                results[number] = error

        run_all([lambda number=number: rank(number) for number in range(len(self.hosts))])
        return results


class ThreadComm:
    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank, self.size = ranks, rank, len(ranks.hosts)

    def all_gather_object(self, value: Any) -> list[Any]:
        self.ranks.slots[self.rank] = value
        self.ranks.barrier.wait(20)
        found = list(self.ranks.slots)
        self.ranks.barrier.wait(20)
        return found

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        return self.all_gather_object(value)[root]

    def broadcast(self, x: Any, root: int = 0) -> Any:
        x[...] = self.all_gather_object(x.copy())[root]
        self.ranks.broadcasts += self.rank == 0
        return x


def run_all(functions: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Ranks]:
    """Ranks on hosts of which each sees its own cache folder only."""

    def make(hosts: list[str]) -> Ranks:
        ranks = Ranks(hosts)
        seen = Bundle.visible

        def visible(bundle: Bundle) -> bool:
            where = [Path(path) for path, _ in bundle.files.values()]
            own = all(path.is_relative_to(tmp_path / ranks.host.split("/")[0]) for path in where)
            hidden = ranks.host.endswith("/blind") and not (
                where[0].is_relative_to(tmp_path / ranks.host)
            )
            return own and not hidden and seen(bundle)

        monkeypatch.setattr(Bundle, "visible", visible)
        monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / ranks.host / "plait")
        monkeypatch.setattr(socket, "gethostname", lambda: ranks.host.split("/")[0])
        return ranks

    return make


CONTENT = np.arange(100_003, dtype=np.uint8).tobytes()


def contents(bundles: list[Any]) -> list[bytes]:
    for bundle in bundles:
        assert isinstance(bundle, Bundle), bundle
    return [bundle.path("a.bin").read_bytes() for bundle in bundles]


def test_ranks_of_a_node_map_one_file(nodes: Callable[[list[str]], Ranks]) -> None:
    ranks = nodes(["one"] * 3)
    bundles = ranks.run(lambda comm: build_once(comm, lambda: obtain("key", writer(CONTENT))))
    assert contents(bundles) == [CONTENT] * 3
    assert len({str(bundle.path("a.bin")) for bundle in bundles}) == 1
    assert ranks.broadcasts == 0


def test_other_nodes_get_one_copy_each(
    nodes: Callable[[list[str]], Ranks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plait.data.share._CHUNK_BYTES", 4096)
    ranks = nodes(["one", "two", "two", "three", "one"])
    bundles = ranks.run(lambda comm: build_once(comm, lambda: obtain("key", writer(CONTENT))))
    assert contents(bundles) == [CONTENT] * 5
    assert [
        bundle.path("a.bin").relative_to(tmp_path).parts[0] for bundle in bundles
    ] == ranks.hosts
    assert len({bundle.fingerprint for bundle in bundles}) == 1
    assert all(bundle.meta == {"answer": 42} for bundle in bundles)
    assert ranks.broadcasts == -(-len(CONTENT) // 4096)
    for host in ("two", "three"):
        assert len(list((tmp_path / host / "plait").iterdir())) == 1
    again = ranks.run(lambda comm: build_once(comm, lambda: obtain("key", refuse)))
    assert contents(again) == [CONTENT] * 5  # the copies in the caches of two and three serve again


def test_ranks_of_one_host_name_that_see_different_files(
    nodes: Callable[[list[str]], Ranks],
) -> None:
    ranks = nodes(["one", "two", "two/blind", "two"])
    bundles = ranks.run(lambda comm: build_once(comm, lambda: obtain("key", writer(CONTENT))))
    assert contents(bundles) == [CONTENT] * 4


def test_a_full_disk_on_one_node_is_said_by_all(
    nodes: Callable[[list[str]], Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = nodes(["one", "two", "two"])

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    errors = ranks.run(lambda comm: build_once(comm, lambda: obtain("key", writer(CONTENT))))
    for error in errors:
        assert isinstance(error, UserError)
        assert "two" in str(error)
        assert "No space left" in str(error)


@pytest.mark.parametrize("step", ["_seal", "_publish"])
def test_a_disk_that_refuses_what_was_received_is_said_by_all(
    nodes: Callable[[list[str]], Ranks], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    ranks = nodes(["one", "two", "two"])
    original = getattr(cache, step)

    def refused(folder: Path, *more: Any) -> Any:
        if ranks.host == "two":
            raise OSError(122, "Disk quota exceeded")
        return original(folder, *more)

    monkeypatch.setattr(cache, step, refused)
    errors = ranks.run(lambda comm: build_once(comm, lambda: obtain("key", writer(CONTENT))))
    for error in errors:
        assert isinstance(error, UserError), error
        assert "two: the disk refused a copy of the data after it had been received" in str(error)
    assert ranks.broadcasts == 1


@pytest.mark.parametrize(("kind", "raised"), [(UserError, UserError), (KeyError, RuntimeError)])
def test_what_rank_0_raises_all_raise(
    kind: type[Exception], raised: type[Exception], nodes: Callable[[list[str]], Ranks]
) -> None:
    def build() -> Bundle:
        raise kind("no such corpus")

    errors = nodes(["one"] * 3).run(lambda comm: build_once(comm, build))
    assert type(errors[0]) is kind
    for error in errors[1:]:
        assert type(error) is raised
        assert "no such corpus" in str(error)


def test_one_ranks_error_is_raised_by_all(nodes: Callable[[list[str]], Ranks]) -> None:
    def check(comm: ThreadComm) -> None:
        all_raise(comm, f"bad on {comm.rank}" if comm.rank else None)

    errors = nodes(["one"] * 3).run(check)
    assert [str(error) for error in errors] == ["bad on 1"] * 3
    assert nodes(["one"] * 2).run(lambda comm: all_raise(comm, None)) == [None, None]
