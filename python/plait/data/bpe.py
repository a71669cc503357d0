"""Byte-level BPE through the `tokenizers` package: trained on a corpus, encoding in parallel.

The package is loaded only where text is encoded or decoded; training from the cache needs none.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.errors import UserError

VERSION = 1  # of the settings below; part of the cache's key
END_OF_TEXT = "<|endoftext|>"  # token 0; text that reads like it is encoded as plain text
SMALLEST = 257  # the bytes and the end of text
_BATCH = 32  # pieces encoded at once
_TRAINING_PIECES = 4096  # at most (256 MiB): a larger corpus is sampled evenly

Ids = npt.NDArray[np.int32]


class Tokenizer:
    """json: the tokenizer in the format of the `tokenizers` package (tokenizer.json)."""

    end_of_text = 0

    def __init__(self, json: str) -> None:
        self.json = json
        self._loaded: Any = None

    @staticmethod
    def train(pieces: Iterable[str], count: int, vocabulary: int) -> "Tokenizer":
        """Trains on the text of `count` pieces. The corpus may yield fewer tokens than asked for.

        Raises UserError without the package.
        """
        library = _library()
        byte_level = library.pre_tokenizers.ByteLevel
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(byte_level.alphabet()),
            show_progress=False,
        )
        stride = -(-count // _TRAINING_PIECES)
        chosen = islice(pieces, 0, None, max(stride, 1))
        tokenizer.train_from_iterator(_batches(chosen), trainer)
        return Tokenizer(tokenizer.to_str())

    def encode(self, text: str) -> Ids:
        """Token ids (n,) of a text."""
        return np.array(self._tokenizer.encode(text).ids, np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids; the end of text and ids outside the tokenizer have none."""
        known = self._tokenizer.get_vocab_size()
        ids = [token for token in map(int, tokens) if 0 <= token < known]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def encode_documents(self, pieces: Iterable[tuple[str, bool]]) -> Iterator[Ids]:
        """Arrays of tokens of (text, ends its document), an end of text after each document."""
        source = iter(pieces)
        while batch := list(islice(source, _BATCH)):
            encodings = self._tokenizer.encode_batch_fast([text for text, _ in batch])
            for encoding, (_, ends) in zip(encodings, batch):
                yield np.array(encoding.ids + [self.end_of_text] * ends, np.int32)

    def token_bytes(self, vocabulary: int) -> Ids:
        """Bytes of text per token id (vocabulary,): 0 for the end of text and unused ids."""
        out = np.zeros(vocabulary, np.int32)
        for token, number in self._tokenizer.get_vocab().items():
            out[number] = len(token)  # one character of the byte alphabet per byte
        out[self.end_of_text] = 0
        return out

    @property
    def _tokenizer(self) -> Any:
        if self._loaded is None:
            self._loaded = _library().Tokenizer.from_str(self.json)
            self._loaded.encode_special_tokens = True
        return self._loaded


def _library() -> Any:
    # Said before its first use, or every later fork (a launcher, a git call) prints a warning.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "text needs the tokenizers package: pip install 'plait[text]'"
            f" ({type(error).__name__}: {error})"
        ) from error
    return tokenizers


def _batches(pieces: Iterable[str]) -> Iterator[list[str]]:
    source = iter(pieces)
    while batch := list(islice(source, _BATCH)):
        yield batch
