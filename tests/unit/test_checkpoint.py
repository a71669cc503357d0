"""Checkpoints: what is written at one layout is read at another, whole or not at all."""

import json
import math
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import ARRAYS, names, pieces, same, saved, whole
from fake_ranks import Ranks, run

from plait import checkpoint
from plait.checkpoint import CheckpointError, Piece, Reader, latest, load, save


@pytest.mark.parametrize(("written", "read"), [(1, 1), (1, 3), (3, 1), (2, 5), (5, 2)])
def test_any_layout_reads_what_any_layout_wrote(tmp_path: Path, written: int, read: int) -> None:
    path = saved(tmp_path, size=written, seed=7)

    def body(comm: Ranks) -> list[Piece]:
        wanted = pieces(comm.rank, read, seed=1, empty=True)
        manifest = load(path, wanted, comm)
        assert (manifest.step, manifest.metadata) == (100, {"a": [1]})
        return wanted

    for rank, wanted in enumerate(run(read, body)):
        for piece, expected in zip(wanted, pieces(rank, read, seed=1)):
            assert same(piece.array, expected.array), piece.key


def test_every_range_reads_as_the_array(tmp_path: Path) -> None:
    reader = Reader(saved(tmp_path, size=4))
    full = whole("blocks.0.half", "master")
    for start in range(len(full) + 1):
        for stop in range(start, len(full) + 1):
            assert same(reader.read("blocks.0.half", "master", start, stop), full[start:stop])
    assert same(reader.read("count", "buffer"), whole("count", "buffer"))
    assert reader.read("empty").size == 0


def test_arrays_beyond_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.shard, "CHUNK", 7 * 4)
    monkeypatch.setattr(sys.modules["plait.checkpoint.export"], "CHUNK", 7 * 4)
    path = saved(tmp_path, size=3)
    checkpoint.export(path, tmp_path / "out.safetensors")
    assert same(
        Reader(path).read("embedding.weight", "first", 11, 401),
        whole("embedding.weight", "first")[11:401],
    )
    assert not checkpoint.verify(path).problems


def test_numpy_reads_one_in_five_lines(tmp_path: Path) -> None:
    folder = saved(tmp_path, size=3)
    text = (folder / "manifest.json").read_text()
    array = json.loads(text)["arrays"]["master/embedding.weight"]
    parts = [
        np.fromfile(folder / p["file"], array["dtype"], p["length"], offset=p["offset"])
        for p in array["pieces"]
    ]
    weight = np.concatenate(parts).reshape(array["shape"])
    assert same(weight.ravel(), whole("embedding.weight", "master"))


def test_the_safetensors_library_reads_the_files(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = saved(tmp_path, size=2)
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            found |= {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
            for key in opened.keys():  # noqa: SIM118
                if key.startswith("first/embedding"):
                    start = int(key.split("@")[1])
                    part = whole("embedding.weight", "first")[start:][: found[key][0]]
                    assert same(opened.get_tensor(key), part)
    assert (
        sum(shape[0] for key, shape in found.items() if key.startswith("master/blocks.0.half"))
        == 30
    )


def test_export_is_one_file_of_whole_arrays(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    saved(tmp_path / "checkpoints", size=3)
    path, out = checkpoint.find(tmp_path), tmp_path / "out.safetensors"
    header = checkpoint.shard.read_header
    assert checkpoint.export(path, out) == out.stat().st_size
    assert set(header(out)) == {name for name, kind in ARRAYS if kind in ("master", "buffer")}
    with pytest.raises(CheckpointError, match="exists"):
        checkpoint.export(path, out)
    dtype, shape, offset = header(out)["blocks.0.half"]
    assert (dtype, shape) == ("BF16", (5, 3, 2))
    raw = np.fromfile(out, np.uint16, 30, offset=offset)
    assert raw.tobytes() == whole("blocks.0.half", "master").tobytes()
    loaded = load_file(out)
    for (name, _), (shape, _) in ARRAYS.items():
        assert loaded[name].shape == shape
    assert same(loaded["embedding.weight"].ravel(), whole("embedding.weight", "master"))
    assert names(tmp_path) == ["checkpoints", "out.safetensors"]


def test_keep_leaves_the_newest(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        saved(tmp_path, step=step, keep=2)
    assert names(tmp_path) == ["step-00000030", "step-00000040"]
    saved(tmp_path, step=50, keep=1)
    assert names(tmp_path) == ["step-00000050"]
    assert latest(tmp_path) == tmp_path / "step-00000050"
    assert latest(tmp_path / "nowhere") is None


def test_the_same_step_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    saved(tmp_path, size=1)
    path = saved(tmp_path, size=3)
    assert names(tmp_path) == ["step-00000100"]
    assert len(list(path.glob("*.safetensors"))) == 3
    assert not checkpoint.verify(path).problems


def test_a_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.rename(tmp_path / ".step-00000100.replaced-abc")
    (tmp_path / ".step-00000100.tmp-abc").mkdir()
    (tmp_path / ".step-00000050.tmp-def").mkdir()
    (tmp_path / ".other").mkdir()
    assert latest(tmp_path) is None
    assert checkpoint.clean(tmp_path) == [".step-00000050.tmp-def", ".step-00000100.tmp-abc"]
    assert names(tmp_path) == [".other", "step-00000100"]
    assert not checkpoint.verify(path).problems


def failing(after: int) -> Iterable[Piece]:
    yield pieces(0, 2)[0]
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("bad_rank", [0, 1, 2])
def test_a_failure_on_any_rank_is_one_error_on_all(tmp_path: Path, bad_rank: int) -> None:
    old = saved(tmp_path, step=50, size=3)

    def body(comm: Ranks) -> Path:
        own = failing(1) if comm.rank == bad_rank else pieces(comm.rank, 3)
        return save(tmp_path, 100, own, comm, metadata={}, keep=1)

    results = run(3, body)
    assert {type(r) for r in results} == {CheckpointError}
    assert len({str(r) for r in results}) == 1
    text = str(results[0])
    assert f"rank {bad_rank} on host" in text
    assert "No space left on device" in text
    assert "step-00000050 is as it was" in text
    assert names(tmp_path) == [old.name]
    assert not checkpoint.verify(old).problems


def test_a_bug_on_one_rank_shows_its_traceback(tmp_path: Path) -> None:
    def body(comm: Ranks) -> Path:
        own = pieces(comm.rank, 2) if comm.rank else [None]
        return save(tmp_path, 100, own, comm, metadata={}, keep=1)  # type: ignore[arg-type]

    results = run(2, body)
    assert all("rank 0 on host" in str(r) and "Traceback" in str(r) for r in results)


@pytest.mark.parametrize("where", ["shard", "manifest"])
def test_a_full_disk(tmp_path: Path, where: str) -> None:
    """With a limit on file length, as a full disk: the write itself fails, part way."""
    import resource

    old = saved(tmp_path, step=50)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = {f.name: f.stat().st_size for f in old.iterdir()}
    big = {"text": "x" * 20000} if where == "manifest" else {}
    limit = max(v for k, v in sizes.items() if k != "manifest.json") if where == "manifest" else 700
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit + 64, limits[1]))
    try:
        results = run(
            2, lambda comm: save(tmp_path, 100, pieces(comm.rank, 2), comm, metadata=big, keep=1)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {type(r) for r in results} == {CheckpointError}
    assert "File too large" in str(results[1])
    assert ("manifest.json" in str(results[1])) == (where == "manifest")
    assert names(tmp_path) == [old.name]
    assert not checkpoint.verify(old).problems


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    results = run(
        2,
        lambda comm: save(
            tmp_path / "file" / "x", 1, pieces(comm.rank, 2), comm, metadata={}, keep=1
        ),
    )
    assert all("Not a directory" in str(r) for r in results), results


@pytest.mark.parametrize("there", [False, True])
def test_ranks_that_do_not_share_the_folder(tmp_path: Path, there: bool) -> None:
    def body(comm: Ranks) -> Path:
        if comm.rank == 1:
            real = comm.broadcast_object

            def elsewhere(value: Any, root: int = 0) -> Any:
                comm.broadcast_object = real  # type: ignore[method-assign]
                path, error = real(value, root)
                other = tmp_path / "other" / path.name
                if there:
                    other.mkdir(parents=True)
                return other, error

            comm.broadcast_object = elsewhere  # type: ignore[method-assign]
        return save(tmp_path / "one", 1, pieces(comm.rank, 2), comm, metadata={}, keep=1)

    results = run(2, body)
    assert all("all hosts share" in str(r) for r in results), results
    assert names(tmp_path / "one") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own[1:], "do not make up master/embedding.weight"),
        (lambda own: [*own, Piece("x", "master", (4,), 1, np.zeros(3, "f4"))], "0 to 1 are in no"),
        (lambda own: [*own, Piece("x", "master", (4,), 0, np.zeros(3, "f4"))], "3 to 4 are in no"),
        (
            lambda own: [*own, Piece("x", "master", (4,), 2, np.zeros(3, "f4"))],
            "2 to 5 of a global",
        ),
        (lambda own: [*own, own[0]], "twice"),
        (lambda own: [*own, Piece("x", "third", (1,), 0, np.zeros(1, "f4"))], "kind 'third'"),
        (lambda own: [*own, Piece("x", "master", (2, 1), 0, np.zeros((2, 1)))], "1-D"),
        (lambda own: [*own, Piece("x", "master", (2,), 0, np.zeros(4)[::2])], "strides"),
        (lambda own: [*own, Piece("x", "master", (2,), 0, np.zeros(2, "c8"))], "complex64"),
        (
            lambda own: [*own, Piece("empty", "master", (4, 0), 0, np.zeros(0, "f4"))],
            r"\(0, 4\) on",
        ),
    ],
)
def test_pieces_that_do_not_fit_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    def body(comm: Ranks) -> Path:
        own = pieces(comm.rank, 2)
        own = change(own) if comm.rank == 1 else own
        return save(tmp_path, 100, own, comm, metadata={}, keep=1)

    for result in run(2, body):
        with pytest.raises(CheckpointError, match=message):
            raise result
    assert names(tmp_path) == []


def test_a_piece_that_two_ranks_give_is_refused(tmp_path: Path) -> None:
    results = run(2, lambda comm: save(tmp_path, 1, pieces(0, 1), comm, metadata={}, keep=1))
    assert all("are in two pieces" in str(r) for r in results), results


@pytest.mark.parametrize(
    "metadata", [{"a": {1: 2}}, {"a": (1, 2)}, {"a": np.float32}, {"a": math.inf}]
)
def test_metadata_must_survive(tmp_path: Path, metadata: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="metadata"):
        save(tmp_path, 1, pieces(0, 1), Ranks(), metadata=metadata, keep=1)
    assert names(tmp_path) == []


def test_another_model_is_refused_on_all_ranks(tmp_path: Path) -> None:
    folder = saved(tmp_path)

    def body(comm: Ranks) -> Any:
        own = [p for p in pieces(comm.rank, 2, empty=True) if p.name != "count"]
        own[0] = Piece("embedding.weight", "master", (37, 13), 0, np.zeros(0, "f4"))
        own.append(Piece("new.weight", "master", (3,), comm.rank, np.zeros(1, "f4")))
        return load(folder, own, comm)

    results = run(2, body)
    assert len({str(r) for r in results}) == 1
    text = str(results[0])
    assert "3 of 7 arrays differ" in text
    assert "float32 (37, 12) in the checkpoint, float32 (37, 13) in the model" in text
    assert "master/new.weight: in the model, not in the checkpoint" in text
    assert "buffer/count: in the checkpoint, not in the model" in text


def test_summary_has_a_row_for_each_name(tmp_path: Path) -> None:
    manifest, rows = checkpoint.summary(saved(tmp_path))
    assert manifest.nbytes == sum(row.nbytes for row in rows)
    row = next(row for row in rows if row.name == "embedding.weight")
    assert (row.shape, set(row.kinds), row.nbytes) == ((37, 12), {"master", "first"}, 37 * 12 * 8)


def test_a_file_that_grows_short_after_opening(tmp_path: Path) -> None:
    """Truncation behind the reader's back is an error, not a signal."""
    folder = saved(tmp_path, size=1)
    reader = Reader(folder)
    path = folder / "rank-00000.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="truncated"):
        reader.read("embedding.weight", "first")
    path.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        reader.read("embedding.weight", "first")


def test_the_threads_of_the_tests_are_gone() -> None:
    assert threading.active_count() == 1
