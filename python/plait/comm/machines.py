"""Two levels of ranks: which machine each is on, who there collects for whom, and which complete
nodes of the tree the ranks of a machine add up among themselves.

Each rank of a machine collects what goes to or comes from a contiguous range of ranks, so that
every byte crosses between two machines once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from plait.comm.combine import Parts, Reduction
from plait.comm.tree import Leaves, Node, merges
from plait.comm.work import Array


@dataclass(frozen=True)
class Group:
    """A complete node of the tree that the ranks of one machine add up among themselves."""

    span: Node
    parts: Parts  # how many of their nodes go into it, and the merges
    first: tuple[int, ...]  # of each of these ranks, the index of its first node in it


@cache
def groups(leaves: Leaves, ranks: tuple[int, ...]) -> list[Group]:
    """The complete nodes that these ranks' leaves make up, in leaf order."""
    pushed = [(i, node) for i, rank in enumerate(ranks) for node in leaves.nodes(rank)]
    counts = merges(leaves.count, [node for _, node in pushed])
    starts: list[int] = []  # a stack of the first pushed node of each group
    for index, count in enumerate(counts):
        starts = [*starts, index][: len(starts) + 1 - count]
    found = []
    for start, stop in zip(starts, [*starts[1:], len(pushed)]):
        owners = [i for i, _ in pushed]
        inside = tuple(owners[start:stop].count(i) for i in range(len(ranks)))
        first = tuple(owners[:start].count(i) for i in range(len(ranks)))
        span = (pushed[start][1][0], pushed[stop - 1][1][1])
        found.append(Group(span, (inside, counts[start:stop]), first))
    return found


class Machines:
    """nodes: the number of each rank's node.

    ranks: those of each machine; own: the number of this rank's machine; mates: the ranks there;
    place: this rank's index among them; served: for whom it collects.
    """

    def __init__(self, rank: int, nodes: Sequence[int]):
        self.size = len(nodes)
        self.ranks = [
            tuple(rank for rank in range(self.size) if nodes[rank] == number)
            for number in sorted(set(nodes))
        ]
        self.own = next(i for i, ranks in enumerate(self.ranks) if rank in ranks)
        self.mates = self.ranks[self.own]
        self.place = self.mates.index(rank)
        cuts = self.cuts(self.own)
        self.served = range(cuts[self.place], cuts[self.place + 1])

    def cuts(self, machine: int) -> list[int]:
        """The i-th rank of a machine serves ranks [cuts[i], cuts[i + 1])."""
        count = len(self.ranks[machine])
        return [i * self.size // count for i in range(count + 1)]

    def collectors(self, rank: int) -> list[int]:
        """Who on each machine collects for a rank."""
        found = []
        for machine, ranks in enumerate(self.ranks):
            cuts = self.cuts(machine)
            found.append(next(r for i, r in enumerate(ranks) if rank < cuts[i + 1]))
        return found

    def shares(self, lengths: Sequence[int]) -> list[int]:
        """What each rank of this machine collects, if rank r has lengths[r]."""
        return [sum(lengths[a:b]) for a, b in pairwise(self.cuts(self.own))]

    # --- sums: a reduction inside every machine, then the rest ------------------------------------

    def groups(self, leaves: Leaves) -> list[list[Group]]:
        """What each machine adds up."""
        return [groups(leaves, ranks) for ranks in self.ranks]

    def inside(self, reduction: Reduction) -> Iterator[Reduction]:
        """This machine's part in each of its groups, cut as its ranks collect."""
        served = tuple(reduction.bounds[rank] for rank in self.cuts(self.own))
        for group in groups(reduction.leaves, self.mates):
            first = group.first[self.place]
            mine = reduction.nodes[first : first + group.parts[0][self.place]]
            yield Reduction(mine, reduction.leaves, "sum", served, parts=group.parts)

    def add_groups(
        self, reduction: Reduction, arrived: Sequence[Array], rank: int, out: Array
    ) -> None:
        """out = the slice of a rank; arrived (groups, *out.shape): of each machine what its groups
        make of that slice."""
        everywhere = self.groups(reduction.leaves)
        parts = [
            (group.span, part)
            for found, x in zip(everywhere, arrived)
            for group, part in zip(found, x)
        ]
        parts.sort(key=lambda entry: entry[0])
        order = merges(reduction.leaves.count, [span for span, _ in parts])
        rest = Reduction(
            reduction.nodes, reduction.leaves, "sum", reduction.bounds, reduction.bias,
            reduction.bias_cut, parts=((), order),
        )  # fmt: skip
        rest.combine([x for _, x in parts], reduction.bounds[rank], reduction.bounds[rank + 1], out)
