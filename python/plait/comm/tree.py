"""The one binary tree of additions: n leaves, split at the largest power of two below n.

A rank owns a contiguous run of leaves and sends the maximal complete tree nodes in it; whoever
combines pushes nodes on a stack in leaf order and merges the top two whenever they are siblings.
"""

from dataclasses import dataclass
from functools import cache

Node = tuple[int, int]  # leaves [start, stop)


def _split(start: int, stop: int) -> int:
    return start + (1 << ((stop - start - 1).bit_length() - 1))


@cache
def _siblings(leaves: int) -> dict[Node, Node]:
    """Left child -> right child for every inner node of the tree over `leaves`."""
    pairs: dict[Node, Node] = {}
    stack = [(0, leaves)] if leaves > 1 else []
    while stack:
        start, stop = stack.pop()
        middle = _split(start, stop)
        left, right = (start, middle), (middle, stop)
        pairs[left] = right
        stack += [node for node in (left, right) if node[1] - node[0] > 1]
    return pairs


def maximal_nodes(leaves: int, start: int, stop: int) -> list[Node]:
    """The maximal complete nodes that cover [start, stop), in leaf order."""
    found: list[Node] = []
    for leaf in range(start, stop):
        found.append((leaf, leaf + 1))
        _merge(found, leaves)
    return found


def merges(leaves: int, nodes: list[Node]) -> list[int]:
    """After pushing nodes[i] on a stack, how often its top two merge."""
    stack: list[Node] = []
    counts = []
    for node in nodes:
        stack.append(node)
        counts.append(_merge(stack, leaves))
    return counts


def _merge(stack: list[Node], leaves: int) -> int:
    """Merges siblings on top of the stack as long as there are any; returns how often."""
    pairs, count = _siblings(leaves), 0
    while len(stack) > 1 and pairs.get(stack[-2]) == stack[-1]:
        right = stack.pop()
        stack[-1] = (stack[-1][0], right[1])
        count += 1
    return count


@dataclass(frozen=True)
class Leaves:
    """Which leaves of a canonical sum each rank owns: rank r has [bounds[r], bounds[r + 1])."""

    count: int
    bounds: tuple[int, ...]

    @staticmethod
    @cache
    def even(count: int, size: int) -> "Leaves":
        if count < size:
            raise ValueError(f"{count} leaves cannot be shared by {size} ranks")
        return Leaves(count, tuple(rank * count // size for rank in range(size + 1)))

    def run(self, rank: int) -> range:
        return range(self.bounds[rank], self.bounds[rank + 1])

    def nodes(self, rank: int) -> list[Node]:
        return maximal_nodes(self.count, self.bounds[rank], self.bounds[rank + 1])

    def all_nodes(self) -> list[Node]:
        """The nodes of all ranks, in leaf order: what a full reduction combines."""
        return [node for rank in range(len(self.bounds) - 1) for node in self.nodes(rank)]

    def merges(self) -> list[int]:
        return merges(self.count, self.all_nodes())

    def cut(self, n: int, rank: int) -> list[int]:
        """Bounds of this rank's leaves in a dimension of global length n, in global indices."""
        first, last = self.bounds[rank], self.bounds[rank + 1]
        return [leaf * n // self.count for leaf in range(first, last + 1)]
