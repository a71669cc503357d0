"""One SHA-256 for all that training changes, the same at every layout."""

from __future__ import annotations

import hashlib

from plait.train.engine import Engine


def state_digest(engine: Engine) -> str:
    """Hex SHA-256 over the masters, optimizer state and running statistics of all ranks: arrays in
    the order of (name, kind), each in global order, float32, without padding. Collective; every
    rank gets it. Rank 0 holds one array at a time."""
    world = engine.mesh.world
    owned: dict[tuple[str, str], list[tuple[int, bytes]]] = {}
    for kind, span, array in engine.owned():
        parts = owned.setdefault((span.parameter.name, kind), [])
        parts.append((span.global_start, array.tobytes()))
    names = sorted(set().union(*world.all_gather_object(list(owned))))
    digest = hashlib.sha256()
    for key in names:
        everyone = world.gather_object(owned.get(key, []))
        if everyone is not None:
            digest.update(" ".join(key).encode())
            for _, part in sorted(part for parts in everyone for part in parts):
                digest.update(part)
    return str(world.broadcast_object(digest.hexdigest()))
