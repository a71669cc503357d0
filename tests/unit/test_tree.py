"""The tree of additions: its shape, who sends what, and that any share gives the same sum."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest

from plait.comm.tree import Leaves, maximal_nodes, merges


def recursive(start: int, stop: int) -> object:
    """The tree by its definition: nested pairs of leaves."""
    count = stop - start
    if count == 1:
        return f"leaf {start}"
    cut = max(power for power in (1 << i for i in range(20)) if power < count)
    return (recursive(start, start + cut), recursive(start + cut, stop))


def subtree(tree: object, start: int, stop: int) -> object:
    """The node of a nested tree that covers exactly [start, stop), or None."""
    if flat(tree) == [f"leaf {i}" for i in range(start, stop)]:
        return tree
    if isinstance(tree, tuple):
        return subtree(tree[0], start, stop) or subtree(tree[1], start, stop)
    return None


def flat(tree: object) -> list[object]:
    return flat(tree[0]) + flat(tree[1]) if isinstance(tree, tuple) else [tree]


def run(pushed: list[object], counts: list[int]) -> object:
    stack: list[object] = []
    for node, count in zip(pushed, counts, strict=True):
        stack.append(node)
        for _ in range(count):
            right = stack.pop()
            stack[-1] = (stack[-1], right)
    (root,) = stack
    return root


@pytest.mark.parametrize("count", range(1, 34))
def test_any_share_of_leaves_gives_the_tree(count: int) -> None:
    whole = recursive(0, count)
    for size in range(1, count + 1):
        leaves = Leaves.even(count, size)
        pushed: list[object] = []
        for rank in range(size):
            for start, stop in leaves.nodes(rank):
                node = subtree(whole, start, stop)
                assert node is not None, "a node that the tree does not have"
                pushed.append(node)
        assert run(pushed, leaves.merges()) == whole


@pytest.mark.parametrize("count", range(1, 9))
def test_any_contiguous_runs_give_the_tree(count: int) -> None:
    """Uneven ones too, and ranks without a leaf."""
    whole = recursive(0, count)
    for size in range(1, 5):
        for inner in combinations_with_replacement(range(count + 1), size - 1):
            leaves = Leaves(count, (0, *inner, count))
            pushed = [subtree(whole, a, b) for rank in range(size) for a, b in leaves.nodes(rank)]
            assert run(pushed, leaves.merges()) == whole


def test_nodes_are_maximal_and_few() -> None:
    for count in range(1, 34):
        for start in range(count):
            for stop in range(start + 1, count + 1):
                nodes = maximal_nodes(count, start, stop)
                covered = [leaf for a, b in nodes for leaf in range(a, b)]
                assert covered == list(range(start, stop))
                assert len(nodes) <= max(1, 2 * (count - 1).bit_length())
                assert merges(count, nodes) == [0] * len(nodes), "two siblings side by side"
    assert maximal_nodes(8, 0, 8) == [(0, 8)]
    assert maximal_nodes(8, 1, 8) == [(1, 2), (2, 4), (4, 8)]
    assert maximal_nodes(6, 3, 6) == [(3, 4), (4, 6)]


def test_leaves_of_ranks() -> None:
    leaves = Leaves.even(8, 3)
    assert leaves.bounds == (0, 2, 5, 8)
    assert [list(leaves.run(rank)) for rank in range(3)] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert leaves.cut(100, 1) == [25, 37, 50, 62]
    with pytest.raises(ValueError, match="2 leaves cannot be shared by 3 ranks"):
        Leaves.even(2, 3)


def test_the_order_shows_in_the_bits() -> None:
    """The values of the tests over MPI tell the tree from a chain, so these tests can fail."""
    random = np.random.default_rng(0)
    x = random.standard_normal((8, 1000)) * 10.0 ** random.uniform(-3, 3, (8, 1000))
    leaves = list(x.astype(np.float32))
    chain = np.float32(0) + leaves[0]
    for leaf in leaves[1:]:
        chain = chain + leaf
    pairs = [a + b for a, b in zip(leaves[::2], leaves[1::2])]
    tree = (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])
    assert np.count_nonzero(chain != tree) > 100
