"""Text: what a corpus is, how it is split and cut, its tokens, its errors."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora import folder, prepared, words

from plait import data
from plait.data import corpus
from plait.data.corpus import Span, find, pieces
from plait.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plait"


def test_windows_of_a_folder(tmp_path: Path) -> None:
    text = prepared(folder(tmp_path / "in", 40))
    held_out = text.held_out
    assert (text.kind, text.vocabulary, text.input_shape) == ("tokens", 300, (16,))
    assert text.input_dtype == np.int32
    assert held_out.held_out is None
    assert text.samples > 10 * held_out.samples > 0
    inputs, targets = text.batch(np.array([0, text.samples - 1, 3]))
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.shape == targets.shape == (3, 16)
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    first = text.batch(np.array([0, 1]))[0]
    assert text.batch(np.array([0]))[1][0, -1] == first[1, 0]  # windows share that one token
    assert text.batch(np.array([], np.int64))[0].shape == (0, 16)
    for wrong in (-1, text.samples):
        with pytest.raises(IndexError, match=str(wrong)):
            text.batch(np.array([wrong]))


def test_every_20th_file_is_held_out(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", 45)
    files = find(str(root)).files
    assert list(files) == sorted(files)
    training, held_out = find(str(root)).spans()
    assert [span.path for span in held_out] == [str(root / files[19]), str(root / files[39])]
    assert len(training) == 43


def test_fewer_files_hold_out_their_ends(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", 3, 2000)
    training, held_out = find(str(root)).spans()
    for first, second in zip(training, held_out):
        size = os.path.getsize(first.path)
        assert (first.start, first.stop, second.stop) == (0, second.start, size)
        assert 0.95 * size <= first.stop < 0.95 * size + 200
        assert Path(first.path).read_bytes()[first.stop - 1 : first.stop] == b"\n"


@pytest.mark.parametrize(
    "text", ["x" * 200_000, "é" * 100_001, "日" * 70_001, "a\n", "a", "\n" * 9]
)
def test_text_without_lines_is_cut_between_characters(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    training, held_out = find(str(path)).spans()
    parts = ["".join(piece for piece, _ in pieces(part)) for part in (training, held_out)]
    assert "".join(parts) == text
    assert len(parts[1].encode()) <= len(text.encode()) // 20 + 4


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 200_000])
def test_pieces_are_the_text(tmp_path: Path, size: int) -> None:
    text = words(1, size // 5 + 1)[:size]
    path = tmp_path / "a.txt"
    path.write_text(text)
    found = list(pieces([Span(str(path), 0, path.stat().st_size)]))
    assert "".join(piece for piece, _ in found) == text
    assert [ends for _, ends in found] == [False] * (len(found) - 1) + [True]
    assert all(len(piece.encode()) <= 65536 for piece, _ in found)
    assert all(piece.endswith("\n") for piece, _ in found[:-1])


def test_bytes_that_are_not_utf8_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff" * 70_000 + b"x\xe9 ol\xc3\xa9\n")
    text = "".join(piece for piece, _ in pieces([Span(str(path), 0, path.stat().st_size)]))
    assert text == "x olé\n"


def test_what_a_folder_skips(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", 2)
    (root / ".hidden").write_text("no")
    (root / "picture").write_bytes(b"\x89PNG\0\0")
    (root / "loop").symlink_to(root)
    (root / "gone").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe")
    assert find(str(root)).files == ("part0/000.txt", "part1/001.txt")


def test_the_standard_library() -> None:
    found = find("python-stdlib")
    assert "argparse.py" in found.files
    assert not [name for name in found.files if not name.endswith(".py")]
    parts = {part for name in found.files for part in Path(name).parts[:-1]}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__"}


def test_tokens_are_the_text_and_their_bytes_its_bytes(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", 20)
    (root / "part0" / "003.txt").write_text(words(3, 50) + "<|endoftext|> is plain text here\n")
    text = prepared(root, sequence_length=1)
    training, held_out = find(str(root)).spans()
    for part, spans in ((text, training), (text.held_out, held_out)):
        tokens = part.batch(np.arange(part.samples))[0][:, 0]
        tokens = np.append(tokens, part.batch(np.array([part.samples - 1]))[1][0])
        documents = [Path(span.path).read_text() for span in spans]
        assert text.decode(tokens) == "".join(documents)
        assert (tokens == text.tokenizer.end_of_text).sum() == len(documents)
        assert text.token_bytes[tokens].sum() == sum(len(each.encode()) for each in documents)
    assert text.token_bytes.shape == (300,)
    assert text.token_bytes.dtype == np.int32
    assert text.token_bytes[text.tokenizer.end_of_text] == 0


def test_encode_and_decode(tmp_path: Path) -> None:
    text = prepared(folder(tmp_path / "in", 5))
    for sample in ("", "alpha beta\n", "ünseen ✓\t\0 <|endoftext|>", " \n  x"):
        tokens = text.encode(sample)
        assert tokens.dtype == np.int32
        assert text.decode(tokens) == sample
    assert text.decode([299, 10**6, -1, *text.encode("alpha").tolist()]).endswith("alpha")
    again = data.Tokenizer(text.tokenizer.json)
    assert again.encode("gamma").tolist() == text.encode("gamma").tolist()


def test_a_corpus_may_not_fill_its_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ab\n" * 500)
    text = prepared(path, vocabulary=70_000, sequence_length=4)
    assert text.vocabulary == 70_000
    assert text.token_bytes.shape == (70_000,)
    assert text.batch(np.array([0]))[0].max() < 300  # and such a vocabulary takes uint32 files


def test_the_cache_is_used_until_something_changes(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "in", 3)
    first = prepared(root)
    assert "tokenising" in capfd.readouterr().err
    again = prepared(root, sequence_length=8)  # windows are no part of the cache
    assert again.fingerprint == first.fingerprint
    assert "tokenising" not in capfd.readouterr().err
    assert len(list(cache.iterdir())) == 1
    other = prepared(root, vocabulary=290)
    (root / "part0" / "000.txt").write_text(words(99, 200))
    changed = prepared(root)
    assert capfd.readouterr().err.count("tokenising") == 2
    assert len({first.fingerprint, other.fingerprint, changed.fingerprint}) == 3


def test_two_trainings_give_the_same_tokens(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", 25)
    program = (
        "import sys; from plait import data;"
        f"text = data.text({str(root)!r}, vocabulary=400, sequence_length=8); text.prepare();"
        "print(text.fingerprint)"
    )
    found = set()
    for number in range(2):
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / f"cache{number}")}
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**environment, "RAYON_NUM_THREADS": str(number + 1)},
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_no_warning_when_a_process_forks(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", 25)
    program = (
        "import os; from plait import data;"
        f"text = data.text({str(root)!r}, vocabulary=400, sequence_length=8); text.prepare();"
        "child = os.fork(); child or os._exit(0); os.waitpid(child, 0)"
    )
    # Python 3.12 itself warns of any fork beside threads; the tokenizers package would too.
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("plait: tokenising")


def test_larger_corpora_are_known_by_time_not_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    monkeypatch.setattr("plait.data.cache._HASHED_BYTES", 2)
    first = find(str(path)).identity()
    path.write_text("two")
    os.utime(path, ns=(0, 12345))
    assert find(str(path)).identity() != first


def test_nothing_is_read_before_prepare(tmp_path: Path) -> None:
    text = data.text(tmp_path / "missing", vocabulary=300, sequence_length=8)
    assert text.held_out.kind == "tokens"
    for read in (
        lambda: text.samples,
        lambda: text.held_out.fingerprint,
        lambda: text.batch(np.array([0])),
        lambda: text.encode("a"),
        lambda: text.trigram_bits_per_byte,
    ):
        with pytest.raises(RuntimeError, match="prepare"):
            read()


def test_bad_corpora(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "wide.txt").write_text("text", encoding="utf-16")
    cases = {
        "missing.txt": "no such file.*missing.txt|missing.txt.*no such file",
        "empty": "empty",
        "empty/a.txt": "empty",
        "short.txt": r"fewer than one sequence of 17 .sequence_length = 16.*shorter",
        "wide.txt": "not UTF-8.*iconv",
        "empty/..": None,
    }
    for name, message in cases.items():
        if message:
            with pytest.raises(ValueError, match=message):
                prepared(tmp_path / name)
    with pytest.raises(ValueError, match=r"vocabulary = 256.*257"):
        data.text("x", vocabulary=256, sequence_length=8)
    with pytest.raises(ValueError, match="sequence_length = 0"):
        data.text("x", vocabulary=300, sequence_length=0)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "in", 3)
    (root / "part0" / "000.txt").rename(root / "part0" / "zzz.txt")
    found = find(str(root))
    (root / "part0" / "zzz.txt").unlink()
    monkeypatch.setattr("plait.data.text_set.find", lambda path: found)
    with pytest.raises(ValueError, match=r"zzz\.txt"):
        prepared(root)


def test_without_tokenizers_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "in", 3)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'plait\[text\]'"):
        prepared(root)
    monkeypatch.delitem(sys.modules, "tokenizers")
    prepared(root)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert prepared(root).samples > 0  # the cache needs no tokenizer


def test_held_out_rule_is_a_twentieth() -> None:
    assert corpus.HELD_OUT_EVERY == 20


def test_the_tokenizer_s_file_is_utf_8_in_every_locale(tmp_path: Path) -> None:
    """It holds characters that other encodings read as others."""
    (tmp_path / "text").write_text(words(1, 300))
    code = (
        "import sys; from plait import data; t = data.text(sys.argv[1], vocabulary=300, "
        "sequence_length=8); t.prepare(); assert t.decode(t.encode('a word')) == 'a word'"
    )
    encodings = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning:plait.data.text_set"]
    subprocess.run(
        [sys.executable, *encodings, "-c", code, str(tmp_path / "text")], check=True, timeout=60
    )


@pytest.mark.parametrize("kind", ["text", "tokens", "images"])
def test_a_pipe_is_not_said_to_be_missing(tmp_path: Path, kind: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    sizes = {} if kind == "images" else {"vocabulary": 300, "sequence_length": 8}
    for path in (str(pipe), "/dev/null"):
        with pytest.raises(UserError, match="is a device or a pipe: copy what it gives"):
            getattr(data, kind)(path, **sizes).prepare()


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind root, who may run this."""

    def denied(path: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match=r"cannot be read: .*Permission denied"):
        prepared(tmp_path)


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "corpus", 3)
    (root / "binary").write_bytes(b"\0" * 100)
    (root / "latin").write_bytes(b"th\xe9 na\xefve\n" * 100)
    prepared(root)
    said = capsys.readouterr().err
    assert "4 files" in said
    assert "(once); 1 more are no text\n" in said
    assert said.count("200 bytes that are not UTF-8 are left out\n") == 1
