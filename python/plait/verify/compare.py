"""Where two traces part: the first tensor in the order of execution that differs, and on which
rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plait.mesh import Coordinates
from plait.verify.key import CHAIN, DATA, Key
from plait.verify.trace import MASK, Pieces, RankTrace, moved

Whole = tuple[tuple[int, ...], int]  # shape of the whole tensor, and what its elements add up to
Place = tuple[int, int]  # a sample and 0, or the first sample of a microbatch and how many


@dataclass(frozen=True)
class Difference:
    """sample: the first one that differs, -1 for what is not of samples.
    suspects: the ranks that may be wrong. note: what else is known."""

    key: Key
    sample: int
    suspects: tuple[int, ...]
    note: str = ""


def first_difference(
    reference: Sequence[RankTrace], other: Sequence[RankTrace]
) -> Difference | None:
    """None where both computed the same tensors, with the same bits."""
    expected, computed = (
        {key for trace in traces for key in (*trace.samples, *trace.pieces)}
        for traces in (reference, other)
    )
    for key in sorted(expected | computed):
        if key in expected and key in computed:
            activation = any(key in trace.samples for trace in other)
            found = (_in_samples if activation else _in_pieces)(key, reference, other)
            if found is not None:
                return found
        elif key.part < CHAIN:  # each layout has chains and tree nodes of its own
            who = "the reference" if key in expected else "this layout"
            return Difference(key, -1, (), f"only {who} computes it")
    return None


# --- activations ---


def _in_samples(
    key: Key, reference: Sequence[RankTrace], other: Sequence[RankTrace]
) -> Difference | None:
    expected, found = _by_place(key, reference), _by_place(key, other)
    for place in sorted(expected.keys() & found.keys()):
        wanted = wholes(next(iter(expected[place].values())))
        for group in found[place].values():
            if wholes(group) & wanted:
                continue
            shapes = {shape for shape, _ in wanted}
            odd = [rank for rank, *own in group if own[0] not in shapes or tuple(own) not in wanted]
            note = _same_as(group, place, expected) if key.phase == DATA else ""
            return Difference(key, place[0], tuple(odd), note)
    return None


Group = list[tuple[int, tuple[int, ...], int]]  # rank, shape and sum of each tensor rank, in order


def _by_place(key: Key, traces: Sequence[RankTrace]) -> dict[Place, dict[int, Group]]:
    """What the tensor ranks of each pipeline stage hold of each sample."""
    found: dict[Place, dict[int, Group]] = {}
    for trace in sorted(traces, key=lambda trace: trace.at.tensor):
        for record in trace.samples.get(key, []):
            for i, total in enumerate(record.sums):
                place = (record.first + i, 0) if not record.count else (record.first, record.count)
                groups = found.setdefault(place, {})
                mine = (trace.rank, record.shape, int(total))
                groups.setdefault(trace.at.pipeline, []).append(mine)
    return found


def wholes(group: Group) -> set[Whole]:
    """What tensors the parts of a group may be: all the same one, or shards of one, end to end on
    some axis."""
    shapes = [shape for _, shape, _ in group]
    found = {(shape, total) for _, shape, total in group}
    if len(found) > 1:
        found = set()
    if len(group) > 1 and len({len(shape) for shape in shapes}) == 1:
        for axis in range(len(shapes[0])):
            if len({shape[:axis] + shape[axis + 1 :] for shape in shapes}) == 1:
                start = total = 0
                for _, shape, part in group:
                    total += moved(part, axis, start)
                    start += shape[axis]
                first = shapes[0]
                found.add(((*first[:axis], start, *first[axis + 1 :]), total & MASK))
    return found


def _same_as(group: Group, place: Place, expected: dict[Place, dict[int, Group]]) -> str:
    for at, groups in expected.items():
        if at != place and wholes(group) & wholes(next(iter(groups.values()))):
            return f"it is sample {at[0]} of the step instead"
    return ""


# --- parameters ---

# Over which ranks the pieces of a parameter make up one copy of it, tried in this order
_COPIES: tuple[Callable[[Coordinates], object], ...] = (
    lambda at: at,
    lambda at: (at.data, at.pipeline),
    lambda at: (at.tensor, at.pipeline),
    lambda at: at.pipeline,
)


def _in_pieces(
    key: Key, reference: Sequence[RankTrace], other: Sequence[RankTrace]
) -> Difference | None:
    wanted, found = _copies(key, reference), _copies(key, other)
    if not found or not wanted:
        who = "this layout" if wanted else "the reference"
        return Difference(key, -1, (), f"the parts that {who} has do not make one whole")
    for ranks, total in found:
        if total != wanted[0][1]:
            return Difference(key, -1, ranks)
    return None


def _copies(key: Key, traces: Sequence[RankTrace]) -> list[tuple[tuple[int, ...], int]]:
    """The ranks of each copy, and its sum; [] if no grouping of ranks makes every copy whole."""
    having = [(trace.rank, trace.at, trace.pieces[key]) for trace in traces if key in trace.pieces]
    for copy_of in _COPIES:
        groups: dict[object, list[tuple[int, Pieces]]] = {}
        for rank, at, piece in having:
            groups.setdefault(copy_of(at), []).append((rank, piece))
        if all(sum(p.count for _, p in g) == g[0][1].whole for g in groups.values()):
            return [
                (tuple(rank for rank, _ in g), sum(p.sum for _, p in g) & MASK)
                for g in groups.values()
            ]
    return []
