"""Small corpora of text for tests."""

from pathlib import Path

import numpy as np

from plait import data


def words(seed: int, count: int) -> str:
    """Lines of words that repeat enough for a tokenizer to learn."""
    rng = np.random.default_rng(seed)
    vocabulary = ["alpha", "beta", "gamma", "délta", "epsilon", "zeta", "def", "return", "日本語"]
    chosen = zip(rng.choice(vocabulary, count), rng.random(count) < 0.8)
    return "".join(word + (" " if inside else "\n") for word, inside in chosen)


def folder(root: Path, files: int, count: int = 200) -> Path:
    for number in range(files):
        path = root / f"part{number % 3}" / f"{number:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words(number, count))
    return root


def prepared(path: Path, **sizes: int) -> data.text:  # type: ignore[valid-type]
    text = data.text(path, **{"vocabulary": 300, "sequence_length": 16, **sizes})
    text.prepare()
    return text
