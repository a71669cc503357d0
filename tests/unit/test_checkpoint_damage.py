"""Damage to a checkpoint never goes unseen; what cannot be read is not taken for missing."""

import json
from pathlib import Path

import pytest
from checkpoints import names, pieces, saved
from fake_ranks import run

from plait import checkpoint
from plait.checkpoint import CheckpointError, Reader, latest, load


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_one_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    folder = saved(tmp_path, size=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    array = manifest["arrays"]["master/embedding.weight"]
    piece = array["pieces"][-1]
    path = folder / piece["file"]
    flip(path, piece["offset"] + piece["length"] * 4 - 1)
    n = piece["start"]
    # the damage lies in the part that is not asked for, and is found all the same
    with pytest.raises(
        CheckpointError, match=f"{path.name} is damaged: master/embedding.weight@{n}"
    ):
        Reader(folder).read("embedding.weight", "master", n, n + 1)
    assert Reader(folder, verify=False).read("embedding.weight", "master", n, n + 1).size == 1
    Reader(folder).read("embedding.weight", "master", 0, 1)
    assert len(checkpoint.verify(folder).problems) == 1
    flip(path, piece["offset"] + piece["length"] * 4 - 1)
    assert not checkpoint.verify(folder).problems
    flip(path, 20)
    assert checkpoint.verify(folder).problems


def test_damage_is_one_error_on_all_ranks(tmp_path: Path) -> None:
    saved(tmp_path, step=50)
    folder = saved(tmp_path, size=2)
    path = folder / "rank-00001.safetensors"
    flip(path, path.stat().st_size - 1)
    results = run(3, lambda comm: load(folder, pieces(comm.rank, 3, empty=True), comm))
    assert len({str(r) for r in results}) == 1
    assert "move step-00000100 aside to go on from step-00000050" in str(results[0])


def test_every_edit_of_the_manifest_is_found(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    path = folder / "manifest.json"
    text = path.read_text()
    for change in (
        lambda t: t[: len(t) // 2],
        lambda t: t.replace('"step": 100', '"step": 101'),
        lambda t: t.replace("float32", "float33", 1),
        lambda t: "",
    ):
        path.write_text(change(text))
        with pytest.raises(CheckpointError, match="damaged"):
            Reader(folder)
    path.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="has format 2, this plait reads format 1"):
        Reader(folder)
    path.write_text(text)
    assert not checkpoint.verify(folder).problems


def test_latest_passes_over_what_is_not_complete(tmp_path: Path) -> None:
    good = saved(tmp_path, step=10)
    for step in (20, 30, 40):
        saved(tmp_path, step=step, keep=9)
    (tmp_path / "step-00000020" / "rank-00001.safetensors").unlink()
    shard = tmp_path / "step-00000030" / "rank-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    (tmp_path / "step-00000040" / "manifest.json").unlink()
    (tmp_path / "step-99").mkdir()
    told: list[str] = []
    assert latest(tmp_path, told.append) == good
    assert ["no manifest" in told[0], "is truncated" in told[1], "cannot be found" in told[2]] == [
        True
    ] * 3
    assert checkpoint.find(tmp_path) == good
    good.rename(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*truncated"):
        checkpoint.find(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.find(tmp_path / "nowhere")


def test_a_run_goes_on_only_from_what_can_be_read(tmp_path: Path) -> None:
    told: list[str] = []
    assert checkpoint.resumable(tmp_path / "nowhere", told.append) is None
    good, bad = saved(tmp_path, step=10), saved(tmp_path, step=20)
    (bad / "rank-00001.safetensors").unlink()
    assert checkpoint.resumable(tmp_path, told.append) == good
    assert len(told) == 1
    assert "rank-00001.safetensors cannot be found" in told[0]
    (good / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"step-00000020.*step-00000010.*--fresh"):
        checkpoint.resumable(tmp_path, told.append)


def test_what_the_disk_refuses_is_not_passed_over(tmp_path: Path) -> None:
    saved(tmp_path, step=10)
    manifest = saved(tmp_path, step=20) / "manifest.json"
    manifest.unlink()
    manifest.symlink_to(manifest.name)  # an error of the disk, for root too
    with pytest.raises(
        checkpoint.AccessError, match=r"step-00000020/manifest\.json cannot be read"
    ):
        latest(tmp_path)
    circle = tmp_path / "circle"
    circle.symlink_to(circle.name)
    with pytest.raises(checkpoint.AccessError, match="circle cannot be read"):
        latest(circle)


def test_keep_counts_only_what_can_be_read(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        saved(tmp_path, step=step)
    shard = tmp_path / "step-00000006" / "rank-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    saved(tmp_path, step=7, keep=2)
    assert names(tmp_path) == ["step-00000004", "step-00000006", "step-00000007"]
    saved(tmp_path, step=8, keep=2)
    assert names(tmp_path) == ["step-00000006", "step-00000007", "step-00000008"]


def test_paths_may_be_text(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert latest(str(tmp_path)) == path
    assert checkpoint.find(str(tmp_path)) == path
    assert not checkpoint.verify(str(path)).problems
    assert Reader(str(path)).step == 100
