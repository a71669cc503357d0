"""Layers: objects that hold parameters and call ops. They know the tensor communicator and nothing
of the data and pipeline axes. A model is a list of LayerSpec; a pipeline stage builds its slice of
it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from plait.autograd import Tensor, recompute
from plait.comm import Communicator
from plait.ops.parameter import Init, Parameter


@dataclass(frozen=True)
class Build:
    """What a layer needs to build itself: its name's prefix, the tensor axis, its number in the
    model."""

    comm: Communicator
    prefix: str = ""
    index: int = 0

    def at(self, name: str) -> Build:
        """The same for a part of this layer: at("attention").name("qkv") is
        "blocks.0.attention.qkv"."""
        return replace(self, prefix=self.name(name))

    def name(self, name: str) -> str:
        return f"{self.prefix}.{name}" if self.prefix else name

    def split(
        self, name: str, shape: tuple[int, ...], parts: int = 1, **keywords: Any
    ) -> Parameter:
        """A parameter cut along axis 0 over tensor leaves; axis 0 is `parts` fused pieces of equal
        length (gate, up), each cut by itself and stored leaf by leaf."""
        return self.split_parts(name, shape, [shape[0] // parts] * parts, **keywords)

    def split_parts(
        self, name: str, shape: tuple[int, ...], parts: list[int], unit: int = 1, **keywords: Any
    ) -> Parameter:
        """Likewise for pieces of any lengths (q, k, v); each is cut at multiples of `unit` (head
        size)."""
        assert sum(parts) == shape[0]
        rows: list[tuple[int, int]] = []
        leaf_rows = [0]
        leaves = self.comm.leaves
        for leaf in leaves.run(self.comm.rank):
            offset = size = 0
            for part in parts:
                units = part // unit
                start = offset + leaf * units // leaves.count * unit
                stop = offset + (leaf + 1) * units // leaves.count * unit
                rows.append((start, stop))
                size += stop - start
                offset += part
            leaf_rows.append(leaf_rows[-1] + size)
        return Parameter(self.name(name), shape, tuple(rows), tuple(leaf_rows), **keywords)

    def replicated(self, name: str, shape: tuple[int, ...], **keywords: Any) -> Parameter:
        """A parameter that every tensor rank holds whole."""
        return Parameter(self.name(name), shape, ((0, shape[0]),), **keywords)

    def constant(self, name: str, size: int, value: float) -> Parameter:
        """A replicated vector that starts as `value`."""
        return self.replicated(name, (size,), init=Init(mean=value))


class Layer:
    """Base of layers: parameters are found in attributes, in the order they were set, lists
    included."""

    def parameters(self) -> list[Parameter]:
        return list(_parameters(self.__dict__.values()))

    def __call__(self, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")


def _parameters(values: Any) -> Iterator[Parameter]:
    for value in values:
        if isinstance(value, Parameter):
            yield value
        elif isinstance(value, Layer):
            yield from value.parameters()
        elif isinstance(value, list | tuple):
            yield from _parameters(value)


@dataclass(frozen=True)
class LayerSpec:
    """One entry of a model: how to build it, and what it costs (global counts, per sample forward).

    name: the prefix of its parameters' names. parameters: elements; copies: elements tied to those
    of another layer, which cost memory on another stage only. flops: multiply-adds times 2.
    activation: elements kept for backward; output: elements passed on.
    tensor_units: what the tensor grains must divide, such as heads (0: anything).
    sequence: the length of the sequences that it makes of inputs that are none, such as images.
    mixes_samples: an output depends on the other samples of its microbatch, as with batch norm.
    """

    name: str
    build: Callable[[Build], Layer]
    parameters: int = 0
    copies: int = 0
    flops: int = 0
    activation: int = 0
    output: int = 0
    tensor_units: int = 0
    sequence: int = 0
    mixes_samples: bool = False


class Recomputed(Layer):
    """Keeps only the inputs of `layer` and runs it again in backward."""

    def __init__(self, layer: Layer):
        self.layer = layer

    def __call__(self, *inputs: Tensor) -> Any:
        return recompute(self.layer, *inputs)
