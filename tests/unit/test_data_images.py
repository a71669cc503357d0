"""Images: IDX, .npz, folders by class, digits; normalised, split, checked."""

import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plait import data
from plait.data.image_files import find_images, read_idx
from plait.data.image_set import ImageDataset

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plait"


def prepared(path: Path | str, **options: Any) -> ImageDataset:
    images = data.images(path, **options)
    images.prepare()
    return images


def pixels(n: int, *shape: int) -> np.ndarray[Any, Any]:
    return RNG.integers(0, 256, (n, *shape), np.uint8)


def idx(path: Path, array: np.ndarray[Any, Any], element: int = 8) -> None:
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, element, array.ndim, *array.shape)
    content += array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def fashion(root: Path, suffix: str = ".gz", n: int = 50) -> dict[str, np.ndarray[Any, Any]]:
    root.mkdir()
    arrays = {
        "train-images-idx3-ubyte": pixels(n, 6, 5),
        "train-labels-idx1-ubyte": np.arange(n).astype(np.uint8) % 10,
        "t10k-images-idx3-ubyte": pixels(n // 5, 6, 5),
        "t10k-labels-idx1-ubyte": np.arange(n // 5).astype(np.uint8) % 10,
    }
    for name, array in arrays.items():
        idx(root / (name + suffix), array)
    return arrays


def all_of(images: ImageDataset) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return images.batch(np.arange(images.samples))


def normalised(x: np.ndarray[Any, Any], training: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    axes = (0, 1, 2)
    wide = training.astype(np.float64)
    return (x - wide.mean(axes)) / wide.std(axes)


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_idx_files(tmp_path: Path, suffix: str) -> None:
    arrays = list(fashion(tmp_path / "in", suffix).values())
    images = prepared(tmp_path / "in")
    assert (images.kind, images.samples, images.held_out.samples) == ("images", 50, 10)
    assert (images.input_shape, images.input_dtype) == ((6, 5, 1), np.float32)
    assert images.classes == images.held_out.classes == 10
    assert images.held_out.held_out is None
    for part, x, labels in ((images, *arrays[:2]), (images.held_out, *arrays[2:])):
        found, targets = all_of(part)
        assert (found.dtype, targets.dtype) == (np.float32, np.int32)
        assert targets.tolist() == labels.tolist()
        expected = normalised(x[..., None], arrays[0][..., None])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    some = np.array([3, 3, 0])
    np.testing.assert_array_equal(images.batch(some)[0], all_of(images)[0][some])
    with pytest.raises(IndexError, match="sample 50 of"):
        images.batch(np.array([50]))


@pytest.mark.parametrize(
    ("element", "dtype"), [(8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")]
)
def test_idx_element_types(tmp_path: Path, element: int, dtype: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    idx(tmp_path / "a", values, element)
    np.testing.assert_array_equal(read_idx(str(tmp_path / "a"), tmp_path), values)


def test_damaged_idx_files(tmp_path: Path) -> None:
    fashion(tmp_path / "in")
    path = tmp_path / "in" / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    damages = {
        "1515 bytes; its header says 1516": gzip.compress(whole[:-1]),
        "1517 bytes; its header says 1516": gzip.compress(whole + b"x"),
        "damaged or cut short": path.read_bytes()[:-20],
        "damaged or cut short: Not": b"not gzip at all",
        "no IDX file: it starts with 616263": gzip.compress(b"abcdefgh"),
        "no IDX file: it starts with nothing": gzip.compress(b""),
        "element type 7": gzip.compress(b"\0\0\7\3" + whole[4:]),
    }
    for message, content in damages.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name}.*{message}"):
            prepared(tmp_path / "in")
    path.unlink()
    (tmp_path / "in" / "train-images-idx3-ubyte").write_bytes(whole)
    assert prepared(tmp_path / "in").samples == 50
    (tmp_path / "in" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match="t10k has images or labels only"):
        prepared(tmp_path / "in")


def test_an_archive_is_split_and_its_types_kept(tmp_path: Path) -> None:
    x, y = pixels(100, 4, 4, 3), RNG.integers(0, 7, (100, 1))
    np.savez(tmp_path / "a.npz", x=x, y=y)
    images = prepared(tmp_path / "a.npz")
    held = np.arange(100) % 20 == 19
    assert all_of(images)[1].tolist() == y[~held, 0].tolist()
    assert all_of(images.held_out)[1].tolist() == y[held, 0].tolist()
    np.testing.assert_allclose(
        all_of(images.held_out)[0], normalised(x[held], x[~held]), rtol=1e-5, atol=1e-5
    )
    wide = x.astype(np.int64)  # bytes in a wide type are bytes
    np.savez(tmp_path / "b.npz", x=wide, y=y)
    np.testing.assert_array_equal(all_of(prepared(tmp_path / "b.npz"))[0], all_of(images)[0])
    floats = RNG.normal(3, 5, (60, 4, 4))
    np.savez_compressed(
        tmp_path / "c.npz", x_train=floats, y_train=y[:60, 0], x_test=floats[:3], y_test=y[:3, 0]
    )
    images = prepared(tmp_path / "c.npz")
    assert (images.samples, images.held_out.samples) == (60, 3)
    expected = normalised(floats[..., None], floats[..., None])
    np.testing.assert_allclose(all_of(images)[0], expected, rtol=1e-4, atol=1e-5)


def test_statistics_do_not_depend_on_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", x=pixels(41, 3, 4, 2), y=np.arange(41) % 3)
    one = all_of(prepared(tmp_path / "a.npz"))[0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr("plait.data.image_write._BLOCK_BYTES", 50)
    np.testing.assert_array_equal(all_of(prepared(tmp_path / "a.npz"))[0], one)


def test_images_of_one_value(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.full((5, 2, 2), 7, np.uint8), y=np.arange(5))
    images = prepared(tmp_path / "a.npz")
    assert (all_of(images)[0] == 0).all()
    assert images.held_out.samples == 0
    assert images.held_out.batch(np.array([], np.int64))[0].shape == (0, 2, 2, 1)


def test_bad_archives(tmp_path: Path) -> None:
    x, y = np.ones((6, 4, 4), np.float32), np.arange(6)
    bad = x.copy()
    bad[4, 1, 2] = np.nan
    cases: list[tuple[dict[str, Any], str]] = [
        ({"x": bad, "y": y}, r"image 4 has a pixel that is not finite"),
        ({"x": x.astype(np.float64) * 1e39, "y": y}, r"not finite"),
        ({"x": x}, r"holds x: it needs x and y"),
        ({"x": x, "y": y, "x_test": x}, r"x_test and y_test both"),
        ({"x": x, "y": y[:5]}, r"6 images and 5 labels"),
        ({"x": x, "y": y - 1}, r"smallest -1: they must be integers from 0 on"),
        ({"x": x, "y": y / 2}, r"labels are float64"),
        ({"x": x.reshape(6, 16), "y": y}, r"float32 of shape \(6, 16\)"),
        ({"x": x.astype("S3"), "y": y}, r"images are \|S3"),
        ({"x": np.ones((6, 3, 8, 8)), "y": y}, r"channels first"),
        ({"x": x[:0], "y": y[:0]}, r"is empty"),
        ({"x": x, "y": y, "x_test": x[:, :3], "y_test": y}, r"held-out images are \(3, 4, 1"),
        ({"x": x, "y": y, "x_test": x, "y_test": y + 1}, r"label 6 is outside the 6 classes"),
    ]
    for number, (arrays, message) in enumerate(cases):
        path = tmp_path / f"{number}.npz"
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            prepared(path)
    np.savez(tmp_path / "cut.npz", x=x, y=y)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:300])
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}], object), y=y[:2])
    for name in ("cut", "text", "objects"):
        with pytest.raises(ValueError, match=rf"{name}\.npz is damaged, cut short or no") as error:
            prepared(tmp_path / f"{name}.npz")
        assert "pickle" not in str(error.value)


def picture(path: Path, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def test_a_folder_by_class(tmp_path: Path) -> None:
    root = tmp_path / "in"
    saved = {}
    for number in range(45):
        name = f"{'dog' if number % 3 else 'cat'}/{number:02}.png"
        saved[name] = picture(root / name, pixels(1, 5, 7, 3)[0])
    (root / "cat" / "notes.txt").write_text("no picture")
    images = prepared(root)
    assert (images.classes, images.input_shape) == (2, (5, 7, 3))
    names = sorted(saved)
    held = np.arange(45) % 20 == 19
    training = np.stack([saved[name] for name, out in zip(names, held) if not out])
    found, labels = all_of(images)
    assert labels.tolist() == [int("dog" in n) for n, out in zip(names, held) if not out]
    np.testing.assert_allclose(found, normalised(training, training), rtol=1e-5, atol=1e-5)
    assert images.held_out.samples == 2


def test_folders_for_training_and_testing(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for part, count in (("train", 6), ("test", 2)):
        for number in range(count):
            picture(root / part / "ab"[number % 2] / f"{number}.png", pixels(1, 4, 4)[0])
    images = prepared(root)
    assert (images.samples, images.held_out.samples) == (6, 2)
    assert images.input_shape == (4, 4, 1)  # all grey
    picture(root / "train" / "a" / "9.png", pixels(1, 4, 4, 3)[0])
    assert prepared(root).input_shape == (4, 4, 3)
    picture(root / "test" / "new" / "0.png", pixels(1, 4, 4)[0])
    with pytest.raises(ValueError, match="class 'new' of test/"):
        prepared(root)


def test_pictures_of_several_sizes(tmp_path: Path) -> None:
    root = tmp_path / "in"
    picture(root / "a" / "0.png", np.full((6, 6, 3), 10, np.uint8))
    picture(root / "a" / "1.png", np.full((6, 9, 3), 20, np.uint8))
    with pytest.raises(ValueError, match=r"1\.png is 6 x 9, .*0\.png is 6 x 6: give image_size"):
        prepared(root)
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200  # the middle, which is what is left when it is cut to a square
    picture(root / "b" / "2.png", wide)
    images = prepared(root, image_size=4)
    assert images.input_shape == (4, 4, 3)
    x, labels = all_of(images)
    assert labels.tolist() == [0, 0, 1]
    assert [len(np.unique(each)) for each in x] == [1, 1, 1]


def test_bad_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "0.png").write_bytes(b"no picture")
    picture(tmp_path / "cut" / "a" / "0.png", pixels(1, 64, 64, 3)[0])
    path = tmp_path / "cut" / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:2000])
    picture(tmp_path / "deep" / "a" / "0.png", np.full((4, 4), 1000, np.uint16))
    for name, message in {
        "deep": r"0\.png has more than 8 bits a pixel \(mode I;16\)",
        "none": "no pictures by class",
        "bad": r"0\.png cannot be read",
        "cut": r"0\.png cannot be decoded",
        "missing": "no such file or folder.*fashion-mnist, digits",
        "cut/a/0.png": r"must be an \.npz",
    }.items():
        with pytest.raises(ValueError, match=message):
            prepared(tmp_path / name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r"pip install 'plait\[images\]'"):
        prepared(tmp_path / "cut")
    with pytest.raises(ValueError, match="image_size = -1"):
        data.images("x", image_size=-1)


def test_named_sets_say_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plait.data.image_files.FASHION_MNIST", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="apt install dataset-fashion-mnist"):
        prepared("fashion-mnist")
    fashion(tmp_path / "there")
    monkeypatch.setattr("plait.data.image_files.FASHION_MNIST", str(tmp_path / "there"))
    assert prepared("fashion-mnist").samples == 50
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        find_images("digits", 0)


def test_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sklearn" / "datasets" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "sklearn" / "__init__.py").write_text("raise RuntimeError('imported')")
    table = np.hstack([RNG.integers(0, 17, (50, 64)), np.arange(50)[:, None] % 10])
    with gzip.open(folder / "digits.csv.gz", "wt") as file:
        np.savetxt(file, table, fmt="%d", delimiter=",")
    monkeypatch.syspath_prepend(tmp_path)
    images = prepared("digits")
    assert (images.samples, images.held_out.samples) == (40, 10)
    assert (images.classes, images.input_shape) == (10, (8, 8, 1))
    assert all_of(images.held_out)[1].tolist() == [4, 9] * 5


def test_the_cache_is_used(tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fashion(tmp_path / "in")
    first = prepared(tmp_path / "in")
    assert "reading images" in capfd.readouterr().err
    assert prepared(tmp_path / "in").fingerprint == first.fingerprint
    assert capfd.readouterr().err == ""
    assert len(list(cache.iterdir())) == 1


def test_nothing_is_read_before_prepare(tmp_path: Path) -> None:
    images = data.images(tmp_path / "missing")
    assert images.held_out.kind == "images"
    with pytest.raises(RuntimeError, match="prepare"):
        images.held_out.samples  # noqa: B018
