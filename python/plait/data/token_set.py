"""Token files made elsewhere: .npy, or raw integers whose type a sidecar or the caller gives.

The files are mapped where they lie. Beyond 256 MiB their fingerprint covers sizes and sampled
blocks; ids are checked in blocks and then in every batch: starting on a terabyte takes no time.
"""

import json
from pathlib import Path

import numpy as np

from plait.data.bundle import Bundle, sampled_digest
from plait.data.cache import identity
from plait.data.corpus import HELD_OUT_EVERY
from plait.data.dataset import no_file, reading
from plait.data.windows import Ready, Tokens, TokenSource, map_tokens
from plait.errors import UserError

DTYPES = ("uint16", "uint32", "uint8", "int32", "int64")
_HASHED_BYTES = 1 << 28
_CHECKED_BLOCKS = 256
_BLOCK_TOKENS = 4096


class TokenFileSource(TokenSource):
    """path, vocabulary, sequence_length, dtype and held_out as in data.tokens."""

    def __init__(
        self,
        path: str,
        vocabulary: int,
        sequence_length: int,
        dtype: str | None,
        held_out: str | None,
    ) -> None:
        super().__init__(f"tokens {path!r}", vocabulary, sequence_length)
        if vocabulary < 1:
            raise UserError(f"vocabulary = {vocabulary} must be at least 1")
        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"dtype = {dtype!r} must be one of {', '.join(DTYPES)}")
        self._dtype = dtype
        self._paths = [path] if held_out is None else [path, held_out]

    def build(self) -> Bundle:
        files, dtypes = {}, {}
        for part, path in zip(("training", "held_out"), self._paths):
            with reading(f"tokens {path!r}"):
                dtype = self._checked(Path(path))
                name = f"{part}.{'bin' if dtype else 'npy'}"
                files[name] = (str(Path(path).resolve()), Path(path).stat().st_size)
                dtypes[name] = dtype
        with reading(self.name):
            digest = fingerprint = sampled_digest(files)
            if sum(size for _, size in files.values()) <= _HASHED_BYTES:
                _, fingerprint = identity((name, path) for name, (path, _) in files.items())
        return Bundle(files, {"dtypes": dtypes}, digest, fingerprint)

    def map(self, bundle: Bundle) -> Ready:
        parts = [_open(bundle.path(name), dtype) for name, dtype in bundle.meta["dtypes"].items()]
        if len(parts) == 1:
            cut = len(parts[0]) - len(parts[0]) // HELD_OUT_EVERY
            parts = [parts[0][:cut], parts[0][cut:]]
        return Ready(bundle, *parts)

    def _checked(self, path: Path) -> str | None:
        """The type of a raw file's tokens, None for .npy, after a look at its size and ids."""
        if not path.is_file():
            if path.is_dir():
                raise UserError(f"tokens {str(path)!r} is a folder: give a file")
            raise no_file(f"tokens {str(path)!r}", str(path))
        dtype = None if path.suffix == ".npy" else self._raw_dtype(path)
        tokens = _open(path, dtype)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise UserError(
                f"tokens {str(path)!r} hold {tokens.dtype} of shape {tokens.shape}: "
                "they must be integers in one dimension"
            )
        for block in range(_CHECKED_BLOCKS):
            start = max(len(tokens) - _BLOCK_TOKENS, 0) * block // (_CHECKED_BLOCKS - 1)
            ids = tokens[start : start + _BLOCK_TOKENS]
            if ids.size and not (ids.min() >= 0 and ids.max() < self.vocabulary):
                wrong = ids.min() if ids.min() < 0 else ids.max()
                raise UserError(
                    f"tokens {str(path)!r} hold token {wrong}, outside vocabulary = "
                    f"{self.vocabulary}: give the vocabulary of the tokenizer that made the file, "
                    "or the right dtype"
                )
        return dtype

    def _raw_dtype(self, path: Path) -> str:
        sidecar = path.with_suffix(".json")
        dtype: object = self._dtype
        if dtype is None and sidecar.is_file():
            try:
                content = json.loads(sidecar.read_bytes())
            except ValueError as error:
                raise UserError(f"{sidecar} is not JSON: {error}") from error
            dtype = content.get("dtype") if isinstance(content, dict) else None
        if dtype not in DTYPES:
            raise UserError(
                f"tokens {str(path)!r}: the integer type of a raw file is unknown; give "
                f'dtype = "uint16" (or {", ".join(DTYPES[1:])}), or a file {sidecar.name} beside '
                'it that says {"dtype": "uint16"}'
            )
        assert isinstance(dtype, str)
        size = path.stat().st_size
        if size % np.dtype(dtype).itemsize:
            raise UserError(
                f"tokens {str(path)!r} are {size} bytes, no multiple of {dtype}'s "
                f"{np.dtype(dtype).itemsize}: the file is cut short, or of another dtype"
            )
        return dtype


def _open(path: Path, dtype: str | None) -> Tokens:
    if not path.stat().st_size:
        raise UserError(f"tokens {str(path)!r}: the file is empty")
    if dtype is not None:
        return map_tokens(path, np.dtype(dtype))
    try:
        tokens: Tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"tokens {str(path)!r} are no whole .npy file: {error}") from error
    return tokens
