"""Rules of docs/numerics.md that need more than one rank and are about values, not about layouts:
those are compared in cases_gradients.py and cases_training.py."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from engines import Array
from harness import case
from reference import BFLOAT16
from transports import transports

from plait.autograd import Tape
from plait.comm import Communicator, Leaves
from plait.mesh import Mesh
from plait.nn import Build, VocabEmbedding
from plait.ops.cross_entropy import row_statistics
from plait.ops.position import Position
from plait.train import numerics
from plait.train.vocabulary import largest

ROWS, COLUMNS = 101, 6


def peculiar(shape: tuple[int, int], dtype: np.dtype) -> Array:
    """Zeros of both signs, denormals, infinities and one NaN with bits of its own."""
    bits = np.array([0x8000, 0x0000, 0x0001, 0x8001, 0x7F80, 0xFF80, 0xFFC1, 0x3F80], np.uint32)
    values = np.resize(bits << 16, shape[0] * shape[1]).view(np.float32).reshape(shape)
    return values if dtype == np.float32 else (np.resize(bits, shape).astype("u2")).view(dtype)


@case((2, 3, 4))
def what_lies_in_one_leaf_is_selected(world: Communicator) -> None:
    """Rule 8: an addition would make +0 of -0, and quiet or change a NaN."""
    tokens = np.random.default_rng(2).integers(0, ROWS, (3, 40)).astype(np.int32)
    for comm in transports():
        for dtype in (np.dtype(np.float32), BFLOAT16):
            whole = peculiar((ROWS, COLUMNS), dtype)
            tensor = comm.with_leaves(Leaves.even(5, comm.size))
            layer = VocabEmbedding(Build(tensor), ROWS, COLUMNS)
            start, stop = layer.weight.rows[0][0], layer.weight.rows[-1][1]
            padded = np.concatenate(
                [whole, np.zeros((layer.weight.shape[0] - ROWS, COLUMNS), dtype)]
            )
            layer.weight.array = padded[start:stop]
            with Tape(Position(0, 0, 3, False), recording=False) as tape:
                found = layer(tape.input(tokens)).array
            assert found.tobytes() == whole[tokens].tobytes(), f"{comm.transport} {dtype}"


@case((2, 3, 4))
def a_target_s_logit_is_selected(world: Communicator) -> None:
    for comm in transports():
        leaves = Leaves.even(5, comm.size)
        tensor, run = comm.with_leaves(leaves), leaves.run(comm.rank)
        for dtype in (np.dtype(np.float32), BFLOAT16):
            whole = np.full((8, 5 * 32), -1, np.float32).astype(dtype)
            targets = np.arange(8, dtype=np.int32) * 19
            whole[np.arange(8), targets] = peculiar((8, 1), dtype)[:, 0]
            own = whole[:, run.start * 32 : run.stop * 32].copy()
            _, logits, _ = row_statistics(own, targets, 5 * 32 - 3, tensor)
            expected = whole[np.arange(8), targets].astype(np.float32)
            assert logits.tobytes() == expected.tobytes(), f"{comm.transport} {dtype}"


@case((2, 3, 4))
def the_first_of_equal_logits_is_predicted(world: Communicator) -> None:
    """Wherever the vocabulary is cut; zeros of both signs are equal, NaN wins, padding never."""
    mesh = Mesh(1, world.size, 1, grains={"data": 2, "tensor": 4}, comm=world)
    vocabulary, width = 101, 32
    random = np.random.default_rng(4)
    whole = random.integers(-2, 3, (6, 50, 4 * width)).astype(np.float32)
    whole[1] = np.where(random.random(whole[1].shape) < 0.5, np.float32(-0.0), np.float32(0.0))
    whole[2][random.random(whole[2].shape) < 0.02] = np.nan
    whole[3] = -np.inf
    whole[4, :, :64] = -np.inf
    whole[..., vocabulary:] = 9.0
    leaves = mesh.tensor.leaves.run(mesh.tensor.rank)
    own = whole[..., leaves.start * width : leaves.stop * width].copy()
    for dtype in (np.dtype(np.float32), BFLOAT16):
        found = largest(own.astype(dtype), vocabulary, mesh.tensor)
        np.testing.assert_array_equal(found, whole[..., :vocabulary].argmax(-1))


@case(3, limit=30.0)
def the_least_instruction_path_is_taken_and_named(world: Communicator) -> None:
    taken = []

    class Kernels:
        isa = staticmethod(lambda: ("avx512", "avx2", "avx512")[world.rank])
        set_isa = staticmethod(taken.append)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numerics, "kernels", Kernels)
        said = numerics.agree_on_instructions(world)
        assert taken == ["avx2"]
        assert said == f"avx2, for rank 1 on host {socket.gethostname()} has no more"
        Kernels.isa = staticmethod(lambda: "portable")
        assert numerics.agree_on_instructions(world) == "portable"
