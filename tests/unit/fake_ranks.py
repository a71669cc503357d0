"""Ranks for tests of one process: a thread each, with the object collectives of a communicator."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np


class Ranks:
    """One rank's communicator; `world` is shared by the threads of all ranks."""

    def __init__(self, rank: int = 0, size: int = 1, world: "World | None" = None):
        self.rank, self.size, self._world = rank, size, world or World(1)

    def _exchange(self, value: Any) -> list[Any]:
        world = self._world
        world.values[self.rank] = value
        world.gate.wait()
        found = list(world.values)
        world.gate.wait()
        return found

    def barrier(self) -> None:
        self._exchange(None)

    def gather_object(self, value: Any, root: int = 0) -> list[Any] | None:
        found = self._exchange(value)
        return found if self.rank == root else None

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        return self._exchange(value)[root]

    def all_reduce(self, x: Any, op: str = "sum") -> Any:
        return {"max": np.max, "sum": np.sum}[op](self._exchange(x.copy()), axis=0)


class World:
    def __init__(self, size: int):
        self.values: list[Any] = [None] * size
        self.gate = threading.Barrier(size, timeout=60)


def run(size: int, body: Callable[[Ranks], Any]) -> list[Any]:
    """What body(comm) returned or raised on each of size ranks."""
    world, results = World(size), [None] * size

    def one(rank: int) -> None:
        try:
            results[rank] = body(Ranks(rank, size, world))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
