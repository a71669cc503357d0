"""Arrays from Python and made-up data."""

from typing import Any

import numpy as np
import pytest

from plait import data


def test_arrays_and_labels() -> None:
    x, y = np.arange(24.0).reshape(6, 2, 2), np.array([0, 1, 2, 0, 1, 2])
    arrays = data.arrays(x, y, held_out=(x[:2], y[:2]))
    arrays.prepare()
    assert (arrays.kind, arrays.samples, arrays.classes) == ("arrays", 6, 3)
    assert (arrays.input_shape, arrays.input_dtype) == ((2, 2), np.float32)
    found, targets = arrays.batch(np.array([5, 0]))
    assert (found.dtype, targets.dtype) == (np.float32, np.int32)
    assert found.tolist() == x[[5, 0]].tolist()
    assert targets.tolist() == [2, 0]
    held_out = arrays.held_out
    held_out.prepare()
    assert (held_out.samples, held_out.classes, held_out.held_out) == (2, 3, None)
    assert held_out.fingerprint == arrays.fingerprint


def test_arrays_of_numbers() -> None:
    arrays = data.arrays([[1, 2], [3, 4]], [[0.5], [1.5]])
    arrays.prepare()
    assert arrays.classes == 0
    assert arrays.input_dtype == np.int32
    assert arrays.batch(np.array([1]))[1].tolist() == [[1.5]]
    assert arrays.batch(np.array([1]))[1].dtype == np.float32
    same, other = data.arrays([[1, 2], [3, 4]], [[0.5], [1.5]]), data.arrays([[1, 2]], [[0.5]])
    same.prepare()
    other.prepare()
    assert arrays.fingerprint == same.fingerprint != other.fingerprint


def test_a_batch_is_a_copy() -> None:
    x = np.zeros((4, 2), np.float32)
    arrays = data.arrays(x, x)
    arrays.batch(np.arange(4))[0][...] = 1
    assert (x == 0).all()


def test_bad_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.data.array_set._ROWS_BYTES", 64)  # several blocks
    x, y = np.ones((50, 4)), np.arange(50)
    bad = x.copy()
    bad[37, 2] = np.inf
    large = x.copy()
    large[3, 1] = -1e39  # infinite in float32
    cases: list[tuple[Any, Any, Any, str]] = [
        (x, y[:49], None, "x has 50 rows and y 49"),
        (1.0, y, None, r"x is float64 of shape \(\)"),
        (x.astype("S3"), y, None, r"x is \|S3"),
        (bad, y, None, "x: row 37 is not finite"),
        (large, y, None, "x: row 3 is not finite"),
        (x, bad, None, "y: row 37 is not finite"),
        (x, y, (bad, y), "held-out x: row 37 is not finite"),
        (x, y, (x, y + 1), "label 50 is outside the 50 classes"),
        (x, y - 1, None, "label -1 is outside the 49 classes"),
        (y.reshape(50, 1) << 40, y, None, "x holds .* beyond 32 bits"),
        (x[:0], y[:0], None, "is empty"),
        (x, y, (x[:, :3], y), r"rows of shape \(3,\), x of shape \(4,\)"),
    ]
    for inputs, targets, held_out, message in cases:
        with pytest.raises(ValueError, match=message):
            data.arrays(inputs, targets, held_out=held_out).prepare()


def test_synthetic_tokens() -> None:
    tokens = data.synthetic(samples=100, vocabulary=50, sequence_length=9, seed=4)
    tokens.prepare()
    inputs, targets = tokens.batch(np.arange(100))
    assert (tokens.kind, tokens.vocabulary, inputs.shape) == ("tokens", 50, (100, 9))
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    steps = (targets - inputs) % 50
    assert (steps == steps[:, :1]).all()
    assert sorted(np.unique(steps)) == [1, 2, 3, 4]
    assert len(np.unique(inputs[:, 0])) > 30
    np.testing.assert_array_equal(tokens.batch(np.array([7]))[0][0], inputs[7])
    held_out = tokens.held_out
    assert (held_out.samples, held_out.held_out) == (5, None)
    more = data.synthetic(samples=105, vocabulary=50, sequence_length=9, seed=4)
    np.testing.assert_array_equal(
        held_out.batch(np.arange(5))[0], more.batch(np.arange(100, 105))[0]
    )


@pytest.mark.parametrize(("shape", "kind"), [((6, 5, 3), "images"), ((7,), "arrays")])
def test_synthetic_classes_can_be_told_apart(shape: tuple[int, ...], kind: str) -> None:
    made = data.synthetic(samples=300, input_shape=shape, classes=3, seed=1)
    x, labels = made.batch(np.arange(300))
    assert (made.kind, made.classes, x.shape, x.dtype) == (kind, 3, (300, *shape), np.float32)
    assert np.bincount(labels).min() > 60
    flat = x.reshape(300, -1)
    means = np.stack([flat[labels == label].mean(0) for label in range(3)])
    nearest = ((flat[:, None] - means) ** 2).sum(2).argmin(1)
    assert (nearest == labels).mean() > 0.8
    np.testing.assert_array_equal(made.batch(np.array([7, 7]))[0][1], x[7])


def test_synthetic_data_follows_its_seed() -> None:
    made = [data.synthetic(vocabulary=9, sequence_length=3, seed=seed) for seed in (1, 1, 2)]
    first, same, other = (each.batch(np.arange(20))[0].tolist() for each in made)
    assert first == same != other
    assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint
    assert data.synthetic(vocabulary=5, sequence_length=4).batch(np.array([0, 1]))[0].tolist() == [
        [0, 2, 4, 1],
        [4, 2, 0, 3],
    ]


def test_bad_synthetic_data() -> None:
    for options, message in (
        ({}, "takes vocabulary and sequence_length, or"),
        ({"vocabulary": 5, "sequence_length": 5, "classes": 3}, "takes vocabulary"),
        ({"vocabulary": 5}, "sequence_length = 0"),
        ({"input_shape": (3,)}, "classes = 0"),
        ({"input_shape": (3, 0), "classes": 2}, "input_shape = 0"),
        ({"vocabulary": 5, "sequence_length": 5, "samples": 0}, "samples = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            data.synthetic(**options)
