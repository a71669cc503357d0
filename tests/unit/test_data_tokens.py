"""Token files: types, sidecars, held-out parts, and files that are not what they should be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait import data
from plait.data.windows import TokenDataset


def prepared(path: Path, **options: Any) -> TokenDataset:
    tokens = data.tokens(path, **{"vocabulary": 1000, "sequence_length": 4, **options})
    tokens.prepare()
    return tokens


def raw(path: Path, values: Any, dtype: str = "uint16") -> Path:
    np.asarray(values, dtype).tofile(path)
    return path


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint8", "int32", "int64"])
@pytest.mark.parametrize("form", ["argument", "sidecar", "npy"])
def test_every_type(tmp_path: Path, dtype: str, form: str) -> None:
    values = np.arange(200) % 250
    if form == "npy":
        path = tmp_path / "a.npy"
        np.save(path, values.astype(dtype))
    else:
        path = raw(tmp_path / "a.bin", values, dtype)
    if form == "sidecar":
        (tmp_path / "a.json").write_text(json.dumps({"dtype": dtype, "note": "ignored"}))
    tokens = prepared(path, dtype=dtype if form == "argument" else None)
    inputs, targets = tokens.batch(np.array([46, 0]))
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.tolist() == [[184, 185, 186, 187], [0, 1, 2, 3]]
    assert targets.tolist() == [[185, 186, 187, 188], [1, 2, 3, 4]]
    assert tokens.token_bytes is None
    # 190 tokens to train on, 10 held out; the last window needs one token more than its length
    assert (tokens.samples, tokens.held_out.samples) == (47, 2)
    assert tokens.held_out.batch(np.array([0]))[0].tolist() == [[190, 191, 192, 193]]


@pytest.mark.parametrize(("count", "samples"), [(5, 1), (8, 1), (9, 2), (13, 3)])
def test_the_last_part_window_is_dropped(tmp_path: Path, count: int, samples: int) -> None:
    assert prepared(raw(tmp_path / "a.bin", range(count)), dtype="uint16").samples == samples


def test_a_held_out_file_of_its_own(tmp_path: Path) -> None:
    path, other = raw(tmp_path / "a.bin", range(100)), tmp_path / "b.npy"
    np.save(other, np.arange(500, 520, dtype=np.int64))
    tokens = prepared(path, dtype="uint16", held_out=other)
    assert tokens.samples == 24
    assert tokens.held_out.batch(np.array([3]))[1].tolist() == [[513, 514, 515, 516]]


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one, same = raw(tmp_path / "a.bin", range(100)), raw(tmp_path / "b.bin", range(100))
    other = raw(tmp_path / "c.bin", range(1, 101))
    found = [prepared(path, dtype="uint16").fingerprint for path in (one, same, other)]
    assert found[0] == found[1] != found[2]


def test_ids_are_checked_at_the_start_and_in_every_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.zeros(10_000, np.int32)
    values[5001] = 1000
    path = raw(tmp_path / "a.bin", values, "int32")
    with pytest.raises(ValueError, match=r"token 1000, outside vocabulary = 1000"):
        prepared(path, dtype="int32")
    monkeypatch.setattr("plait.data.token_set._CHECKED_BLOCKS", 2)
    tokens = prepared(path, dtype="int32")
    tokens.batch(np.array([1249, 1251]))
    with pytest.raises(ValueError, match=r"token 1000, outside vocabulary = 1000"):
        tokens.batch(np.array([0, 1250]))
    values[5001] = -7
    raw(path, values, "int32")
    with pytest.raises(ValueError, match=r"token -7, outside vocabulary"):
        tokens.batch(np.array([1250]))


def test_bad_files(tmp_path: Path) -> None:
    raw(tmp_path / "ok.bin", range(100))
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    (tmp_path / "noise.npy").write_bytes(b"not an array")
    np.save(tmp_path / "cut.npy", np.arange(1000))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    np.save(tmp_path / "floats.npy", np.ones(100))
    np.save(tmp_path / "wide.npy", np.ones((10, 10), np.int32))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "none.npy", np.ones(0, np.int32))
    (tmp_path / "badside.bin").write_bytes(b"abcd" * 10)
    (tmp_path / "badside.json").write_text("{")
    (tmp_path / "otherside.bin").write_bytes(b"abcd" * 10)
    (tmp_path / "otherside.json").write_text('{"dtype": "float32"}')
    cases = [
        ("missing.bin", {}, r"missing\.bin.*no such file"),
        ("empty.bin", {"dtype": "uint16"}, "empty"),
        ("odd.bin", {"dtype": "uint16"}, r"3 bytes, no multiple of uint16's 2: .*cut short"),
        ("ok.bin", {}, r'dtype = "uint16".*ok\.json'),
        ("badside.bin", {}, r"badside\.json is not JSON"),
        ("otherside.bin", {}, r"type of a raw file is unknown"),
        ("noise.npy", {}, r"noise\.npy.*no whole \.npy"),
        ("cut.npy", {}, r"cut\.npy.*no whole \.npy"),
        ("objects.npy", {}, r"objects\.npy.*no whole \.npy"),
        ("floats.npy", {}, r"float64 of shape \(100,\): they must be integers"),
        ("wide.npy", {}, r"int32 of shape \(10, 10\)"),
        ("none.npy", {}, r"fewer than one sequence|no whole"),
        ("ok.bin", {"dtype": "uint16", "sequence_length": 95}, r"95 training tokens.*96"),
        ("ok.bin", {"dtype": "uint16", "held_out": tmp_path / "gone.bin"}, r"gone\.bin"),
        ("ok.bin", {"dtype": "uint16", "vocabulary": 99}, r"token 99, outside vocabulary = 99"),
    ]
    for name, options, message in cases:
        with pytest.raises(ValueError, match=message):
            prepared(tmp_path / name, **options)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype = 'float32' must be one of uint16"):
        data.tokens("a.bin", vocabulary=10, sequence_length=4, dtype="float32")
    with pytest.raises(ValueError, match="vocabulary = 0"):
        data.tokens("a.bin", vocabulary=0, sequence_length=4)
