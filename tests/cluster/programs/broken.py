"""A model whose last layer raises in training on world rank 1."""

from mpi4py import MPI

from plait import models, nn


class Broken(nn.Layer):
    def __call__(self, x):  # type: ignore[no-untyped-def]
        if MPI.COMM_WORLD.rank == 1:
            raise RuntimeError("this layer is broken")
        return x


def model(**keys: int) -> list[nn.LayerSpec]:
    layers = models.gpt(vocabulary=512, **keys)
    layers.insert(-1, nn.LayerSpec("broken", lambda build: Broken()))
    return layers
