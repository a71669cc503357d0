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
    suspects: the ranks that may be wrong. note: what else is known. alone: there is nothing to
    compare it with."""

    key: Key
    sample: int
    suspects: tuple[int, ...]
    note: str = ""
    alone: bool = False


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
            who, traces = "the reference", reference
            if key in computed:
                who, traces = "this layout", other
            ranks = tuple(t.rank for t in traces if key in t.samples or key in t.pieces)
            return _alone(key, -1, ranks, f"only {who} computes it, at ")
    return None


def _alone(key: Key, sample: int, ranks: tuple[int, ...], note: str) -> Difference:
    return Difference(key, sample, ranks, note + ranks_text(ranks), alone=True)


def ranks_text(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


# --- activations ---


def _in_samples(
    key: Key, reference: Sequence[RankTrace], other: Sequence[RankTrace]
) -> Difference | None:
    expected, found = _by_place(key, reference), _by_place(key, other)
    places = expected.keys() & found.keys()
    if not any(count for _, count in (*expected, *found)):
        places = expected.keys() | found.keys()
    for place in sorted(places):
        if place not in found or place not in expected:
            who = "this layout" if place in expected else "the reference"
            ranks = _whose(key, place[0], other if place in expected else reference)
            return _alone(key, place[0], ranks, f"{who} does not compute it, at ")
        wanted = wholes(next(iter(expected[place].values())))
        for group in found[place].values():
            if wholes(group) & wanted:
                continue
            shapes = {shape for shape, _ in wanted}
            if missing := _missing(key, [rank for rank, *_ in group], other):
                return _alone(key, place[0], missing, "this layout does not compute it, at ")
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
    if len(group) > 1:
        for axis in joints(shapes):
            start = total = 0
            for _, shape, part in group:
                total += moved(part, axis, start)
                start += shape[axis]
            first = shapes[0]
            found.add(((*first[:axis], start, *first[axis + 1 :]), total & MASK))
    return found


def joints(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """The axes on which arrays of these shapes may lie end to end: all others are equal."""
    if len({len(shape) for shape in shapes}) > 1:
        return []
    axes = range(len(shapes[0]))
    return [i for i in axes if len({shape[:i] + shape[i + 1 :] for shape in shapes}) == 1]


def _whose(key: Key, sample: int, traces: Sequence[RankTrace]) -> tuple[int, ...]:
    """The ranks that would compute a tensor of this sample."""
    stages = {trace.at.pipeline for trace in traces if key in trace.samples}
    batches = {
        trace.rank
        for trace in traces
        for inputs, records in trace.samples.items()
        if inputs.phase == DATA
        for record in records
        if record.first <= sample < record.first + len(record.sums)
    }
    return tuple(t.rank for t in traces if t.at.pipeline in stages and t.rank in batches)


def _missing(key: Key, having: list[int], traces: Sequence[RankTrace]) -> tuple[int, ...]:
    """The ranks of a group's tensor axis that have no part of it."""
    places = {(t.at.data, t.at.pipeline) for t in traces if t.rank in having}
    beside = [t.rank for t in traces if (t.at.data, t.at.pipeline) in places]
    return tuple(rank for rank in beside if rank not in having)


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
        who, traces = ("this layout", other) if wanted else ("the reference", reference)
        ranks = tuple(trace.rank for trace in traces if key in trace.pieces)
        return _alone(key, -1, ranks, f"the parts that {who} has do not make one whole: ")
    if len({total for _, total in wanted}) > 1:
        odd = [rank for ranks, total in wanted if total != found[0][1] for rank in ranks]
        return _alone(key, -1, tuple(odd), "the reference parts from itself, at ")
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
        if all(_are_whole([p for _, p in g]) for g in groups.values()):
            return [
                (tuple(rank for rank, _ in g), sum(p.sum for _, p in g) & MASK)
                for g in groups.values()
            ]
    return []


def _are_whole(pieces: Sequence[Pieces]) -> bool:
    """Whether every element is there once."""
    ranges = sorted(each for p in pieces for each in p.ranges)
    starts, stops = [a for a, _ in ranges], [b for _, b in ranges]
    return [*starts, pieces[0].whole] == [0, *stops]
