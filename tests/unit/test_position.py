"""Shares and segments: every sample in one leaf, chains that restart at leaves, the stack that
merges them."""

from itertools import product

import pytest

from plait.comm.tree import Leaves, maximal_nodes
from plait.ops.position import Share


def run_stack(share):
    """Plays the segments on sets of samples; returns the nodes left, as lists of samples in
    order."""
    slots = {}
    for position in share.microbatches(0, 0):
        for segment in position.segments:
            first = position.first_sample
            samples = list(range(first + segment.samples.start, first + segment.samples.stop))
            slots[segment.slot] = ([] if segment.begins else slots[segment.slot]) + samples
            top = segment.slot
            for _ in range(segment.merges):
                slots[top - 1] = slots[top - 1] + slots[top]
                top -= 1
    return [slots[i] for i in range(share.nodes)]


@pytest.mark.parametrize(("batch", "grains", "size", "microbatch"), [
    (b, d, r, m)
    for b, d, r, m in product((1, 5, 8, 12, 16), (1, 2, 3, 5, 8), (1, 2, 3), (None, 1, 2, 3, 5, 16))
    if r <= d <= b
])  # fmt: skip
def test_every_rank_ends_with_its_maximal_nodes(batch, grains, size, microbatch):
    leaves = Leaves.even(grains, size)
    seen = []
    for rank in range(size):
        share = Share(batch, leaves, rank, microbatch)
        nodes = run_stack(share)
        expected = [
            list(range(a * batch // grains, b * batch // grains)) for a, b in leaves.nodes(rank)
        ]
        assert nodes == expected
        sizes = [position.count for position in share.microbatches(0, 0)]
        assert max(sizes) == share.largest
        if microbatch is None:
            assert sizes == [
                (d + 1) * batch // grains - d * batch // grains for d in leaves.run(rank)
            ]
        last = [position.segments[-1] for position in share.microbatches(0, 0)]
        assert max(s.slot + 1 - s.merges for s in last) == share.slots
        seen += [sample for node in nodes for sample in node]
    assert seen == list(range(batch))


def test_slots_grow_with_the_logarithm_of_the_leaves():
    assert Share(64, Leaves.even(8, 1), 0, 4).slots == 4
    assert Share(64, Leaves.even(8, 8), 0, 4).slots == 1
    assert [Share(64, Leaves.even(8, 1), 0, size).slots for size in (8, 16, 32, 64)] == [3, 2, 1, 1]


def test_more_grains_than_samples_are_refused():
    with pytest.raises(ValueError, match=r"8 data grains .* train.batch is 4"):
        Share(4, Leaves.even(8, 1), 0, 1)


def test_maximal_nodes_cover_any_run():
    for leaves in range(1, 17):
        for start in range(leaves):
            for stop in range(start + 1, leaves + 1):
                nodes = maximal_nodes(leaves, start, stop)
                assert [leaf for a, b in nodes for leaf in range(a, b)] == list(range(start, stop))
                assert len(nodes) <= 2 * max(leaves - 1, 1).bit_length()


@pytest.mark.parametrize("batch", [1, 5, 8, 16])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("microbatch", [None, 1, 3, 100])
def test_the_usual_microbatch_is_the_largest_of_any_rank(batch, size, microbatch):
    grains = min(8, batch)
    if size <= grains:
        shares = [Share(batch, Leaves.even(grains, size), r, microbatch) for r in range(size)]
        assert {share.usual for share in shares} == {max(share.largest for share in shares)}
