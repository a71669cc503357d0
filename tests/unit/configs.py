"""Configs for tests."""

from pathlib import Path

SMALL = """
[model]
kind = "gpt"
layers = 2
hidden_dim = 64
heads = 4
sequence_length = 32
[data]
kind = "text"
path = "python-stdlib"
vocabulary = 300
[train]
steps = 10
batch = 8
"""


def write(folder: Path, text: str = SMALL, name: str = "small.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def with_tables(folder: Path, model: str, data: str) -> Path:
    train = "[train]\nsteps = 10\nbatch = 8\n"
    return write(folder, f"[model]\n{model}\n[data]\n{data}\n{train}")


LLAMA = 'kind = "llama"\nlayers = 2\nhidden_dim = 64\nheads = 8\nsequence_length = 16\n'
MLP = 'kind = "mlp"\nhidden_dim = 8'
TOKENS = 'kind = "tokens"\npath = "a.bin"\nvocabulary = 50'
CUSTOM = 'kind = "my.models:tiny"\nwidths = [1, 2]\nnested = { a = 1 }\n'
