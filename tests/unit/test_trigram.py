"""The byte-trigram model against one written for clarity."""

import math
from pathlib import Path

import pytest
from corpora import folder, prepared, words

from plait.data.corpus import find
from plait.data.trigram import Trigram


def reference_bits(training: list[bytes], held_out: list[bytes]) -> float:
    """The trigram model again, one byte at a time, with dictionaries."""
    counts: dict[bytes, dict[int, int]] = {}
    for document in training:
        padded = b"\0\0" + document
        for at in range(2, len(padded)):
            for order in (0, 1, 2):
                seen = counts.setdefault(bytes([order]) + padded[at - order : at], {})
                seen[padded[at]] = seen.get(padded[at], 0) + 1

    def probability(context: bytes, byte: int) -> float:
        lower = 1 / 256 if not context else probability(context[1:], byte)
        seen = counts.get(bytes([len(context)]) + context)
        if not seen:
            return lower
        return (seen.get(byte, 0) + len(seen) * lower) / (sum(seen.values()) + len(seen))

    bits, total = 0.0, 0
    for document in held_out:
        padded = b"\0\0" + document
        for at in range(2, len(padded)):
            bits -= math.log2(probability(padded[at - 2 : at], padded[at]))
            total += 1
    return bits / total


def in_pieces(documents: list[bytes]) -> list[tuple[str, bool]]:
    """Documents cut into pieces of 7 characters, and whether each piece is its document's last."""
    found = []
    for document in documents:
        text = document.decode()
        starts = range(0, max(len(text), 1), 7)
        found += [(text[start : start + 7], start + 7 >= len(text)) for start in starts]
    return found


def test_trigram_against_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    training = [words(seed, 60).encode() for seed in range(6)] + [b"", b"x"]
    held_out = [words(9, 50).encode(), b"unseen: \xc3\xa9\n", b""]
    expected = reference_bits(training, held_out)
    for group in (1, 50, 1 << 22):
        monkeypatch.setattr("plait.data.trigram._GROUP_BYTES", group)
        model = Trigram()
        model.count(in_pieces(training))
        assert model.bits_per_byte(in_pieces(held_out)) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(model.bits_per_byte([]))


def test_trigram_of_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = folder(tmp_path / "in", 20)
    text = prepared(root)
    training, held_out = find(str(root)).spans()
    expected = reference_bits(
        *([Path(span.path).read_bytes() for span in part] for part in (training, held_out))
    )
    assert text.trigram_bits_per_byte == pytest.approx(expected, rel=1e-12)
    path = tmp_path / "tiny.txt"
    path.write_text("abcdefg hijkl mno")
    assert math.isnan(prepared(path, sequence_length=2).trigram_bits_per_byte)
