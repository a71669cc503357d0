"""Text as a dataset of tokens: found, tokenised and counted once, then read from the cache."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from plait.data import bpe
from plait.data.bundle import Bundle
from plait.data.cache import key_of, obtain, say
from plait.data.corpus import Corpus, find, pieces
from plait.data.dataset import reading
from plait.data.trigram import Trigram
from plait.data.windows import Ready, TokenDataset, TokenSource, map_tokens
from plait.errors import UserError

_PARTS = ("training.bin", "held_out.bin")


class Text(TokenDataset):
    """A tokenised corpus; `held_out` is its other twentieth (see data.text)."""

    _source: "TextSource"

    def look(self) -> None:
        self._source.look()

    @property
    def held_out(self) -> "Text | None":
        return Text(self._source, "held_out") if self._part == "training" else None

    @property
    def tokenizer(self) -> bpe.Tokenizer:
        """Its tokenizer, whose `json` may be kept with a run. RuntimeError before prepare."""
        bundle = self._source.ready.bundle
        if self._source.tokenizer is None:
            self._source.tokenizer = bpe.Tokenizer(bundle.path("tokenizer.json").read_text("utf-8"))
        return self._source.tokenizer

    @property
    def trigram_bits_per_byte(self) -> float:
        """What a byte-trigram model of the training text costs on the held-out text, or nan."""
        value = self._source.ready.bundle.meta["trigram_bits_per_byte"]
        return float("nan") if value is None else float(value)

    def encode(self, text: str) -> bpe.Ids:
        """Token ids (n,) int32 of a text."""
        return self.tokenizer.encode(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(tokens)


class TextSource(TokenSource):
    """path, vocabulary and sequence_length as in data.text."""

    tokenizer: bpe.Tokenizer | None = None

    def __init__(self, path: str, vocabulary: int, sequence_length: int) -> None:
        super().__init__(f"text {path!r}", vocabulary, sequence_length)
        if vocabulary < bpe.SMALLEST:
            raise UserError(
                f"vocabulary = {vocabulary}: byte-level BPE needs at least {bpe.SMALLEST}, "
                "the 256 bytes and the end of text"
            )
        self._path = path

    def look(self) -> None:
        """Whether there is text; not whether it is enough, which takes its tokens."""
        with reading(self.name):
            find(self._path)

    def build(self) -> Bundle:
        with reading(self.name):
            corpus = find(self._path)
            size, digest = corpus.identity()
        return obtain(
            key_of("text", bpe.VERSION, self.vocabulary, digest),
            lambda folder: self._write(folder, corpus),
            f"tokenising {self.name}, {len(corpus.files)} files, {size / 1e6:.1f} MB (once)"
            + (f"; {corpus.skipped} more are no text" if corpus.skipped else ""),
        )

    def map(self, bundle: Bundle) -> Ready:
        dtype = np.dtype(bundle.meta["dtype"])
        training, held_out = (map_tokens(bundle.path(part), dtype) for part in _PARTS)
        return Ready(bundle, training, held_out, np.load(bundle.path("token_bytes.npy")))

    def _write(self, folder: Path, corpus: Corpus) -> dict[str, Any]:
        with reading(self.name):
            spans = corpus.spans()
        training, held_out = spans
        count = sum(1 for _ in pieces(training))
        tokenizer = bpe.Tokenizer.train(
            (text for text, _ in pieces(training)), count, self.vocabulary
        )
        (folder / "tokenizer.json").write_text(tokenizer.json, "utf-8")
        np.save(folder / "token_bytes.npy", tokenizer.token_bytes(self.vocabulary))
        dtype = np.dtype(np.uint16 if self.vocabulary <= 1 << 16 else np.uint32)
        lost: list[int] = []
        for name, part in zip(_PARTS, spans):
            with open(folder / name, "xb") as file:
                for tokens in tokenizer.encode_documents(pieces(part, lost)):
                    file.write(tokens.astype(dtype).tobytes())
        if lost:
            say(f"{self.name}: {sum(lost)} bytes that are not UTF-8 are left out")
        trigram = Trigram()
        trigram.count(pieces(training))
        bits = trigram.bits_per_byte(pieces(held_out)) if held_out else None
        return {"dtype": dtype.name, "trigram_bits_per_byte": bits}
