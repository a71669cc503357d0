"""One SHA-256 for all that training changes, the same at every layout."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

from plait.train.engine import Engine

Key = tuple[str, str]  # name, kind

TOGETHER = 1 << 24  # bytes of arrays that rank 0 gathers at once, a larger one by itself


def state_digest(engine: Engine) -> str:
    """Hex SHA-256 over the masters, optimizer state and running statistics of all ranks: arrays in
    the order of (name, kind), each in global order, float32, without padding. Collective; every
    rank gets it. Rank 0 holds TOGETHER bytes at a time, or one array if that is larger."""
    world = engine.mesh.world
    owned: dict[Key, list[tuple[int, bytes]]] = {}
    for kind, span, array in engine.owned():
        parts = owned.setdefault((span.parameter.name, kind), [])
        parts.append((span.global_start, array.tobytes()))
    mine = {key: sum(len(part) for _, part in parts) for key, parts in owned.items()}
    sizes: Counter[Key] = Counter()
    for counts in world.all_gather_object(mine):
        sizes.update(counts)
    digest = hashlib.sha256()
    for keys in _in_groups(sizes):
        everyone = world.gather_object([owned.get(key, []) for key in keys])
        if everyone is None:
            continue
        for index, key in enumerate(keys):
            digest.update(" ".join(key).encode())
            for _, part in sorted(part for parts in everyone for part in parts[index]):
                digest.update(part)
    return str(world.broadcast_object(digest.hexdigest()))


def _in_groups(sizes: Counter[Key]) -> Iterator[list[Key]]:
    """The keys in order, as many at once as have TOGETHER bytes."""
    group: list[Key] = []
    for key in sorted(sizes):
        if group and sum(sizes[x] for x in group) + sizes[key] > TOGETHER:
            yield group
            group = []
        group.append(key)
    if group:
        yield group
