"""Ranks on several machines: who collects for whom, and that what each machine adds up makes the
tree."""

import itertools

import pytest

from plait.comm.machines import Machines
from plait.comm.tree import Leaves, merges

NODES = [
    list(nodes) for size in range(2, 6) for nodes in itertools.product(range(3), repeat=size)
] + [[0] * 8 + [1] * 8, [0, 1] * 5 + [2], [rank // 8 for rank in range(20)]]


def test_every_machine_collects_for_every_rank_once() -> None:
    for nodes in NODES:
        every = [Machines(rank, nodes) for rank in range(len(nodes))]
        for one in every:
            assert one.mates[one.place] == every.index(one)
        for rank, one in enumerate(every):
            assert [every[r].own for r in one.collectors(rank)] == list(range(len(one.ranks)))
            assert all(rank in every[r].served for r in one.collectors(rank))
            lengths = list(range(1, len(nodes) + 1))
            assert one.shares(lengths)[one.place] == sum(lengths[r] for r in one.served)
            assert sum(one.shares(lengths)) == sum(lengths)


@pytest.mark.parametrize("more", [0, 1, 5])
def test_groups_of_all_machines_make_the_tree(more: int) -> None:
    for nodes in NODES:
        leaves = Leaves.even(len(nodes) + more, len(nodes))
        one = Machines(0, nodes)
        found = one.groups(leaves)
        spans = sorted(group.span for groups in found for group in groups)
        assert [leaf for span in spans for leaf in range(*span)] == list(range(leaves.count))
        assert sum(merges(leaves.count, spans)) == len(spans) - 1  # one sum is left
        for ranks, groups in zip(one.ranks, found):
            # each rank's nodes go into the groups in their order, all of them
            for place, rank in enumerate(ranks):
                first = 0
                for group in groups:
                    assert group.first[place] == first
                    first += group.parts[0][place]
                assert first == len(leaves.nodes(rank))
            for group in groups:
                counts, order = group.parts
                assert sum(counts) == len(order) == sum(order) + 1
