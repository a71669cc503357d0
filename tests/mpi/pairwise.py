"""Rows of settings in which every pair of settings occurs, few of them, and always the same ones.

A factor has a name and its settings. One pair that no row has yet begins each new row; the other
factors take, one after the other, the setting that adds most new pairs (Cohen et al. 1997, "The
AETG system", with one candidate a row). Pairs that cannot occur are named by a predicate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Factors = Mapping[str, Sequence[Any]]
Row = dict[str, Any]
Setting = tuple[str, Any]
Pair = tuple[Setting, Setting]
Excluded = Callable[[Setting, Setting], bool]  # asked both ways round


def pairs_of(row: Mapping[str, Any], factors: Factors) -> set[Pair]:
    """Every two settings of a row, in the order of the factors."""
    return set(combinations([(name, row[name]) for name in factors], 2))


def wanted(factors: Factors, excluded: Excluded) -> list[Pair]:
    """Every pair that can occur, in order."""
    return [
        ((one, x), (two, y))
        for one, two in combinations(factors, 2)
        for x, y in product(factors[one], factors[two])
        if fits((one, x), {two: y}, excluded)
    ]


def fits(setting: Setting, row: Mapping[str, Any], excluded: Excluded) -> bool:
    return not any(excluded(setting, x) or excluded(x, setting) for x in row.items())


def pairwise(factors: Factors, excluded: Excluded) -> list[Row]:
    """Rows of one setting for each factor, without excluded pairs; all others occur."""
    left = dict.fromkeys(wanted(factors, excluded))  # a set in order
    place = {name: index for index, name in enumerate(factors)}
    largest_first = sorted(factors, key=lambda name: -len(factors[name]))
    uses: Counter[Setting] = Counter()
    rows: list[Row] = []

    def new_pairs(setting: Setting, row: Row) -> int:
        both = [sorted((setting, x), key=lambda s: place[s[0]]) for x in row.items()]
        return sum((a, b) in left for a, b in both)

    while left:
        row: Row = dict(next(iter(left)))
        for name in (n for n in largest_first if n not in row):
            able = [(name, x) for x in factors[name] if fits((name, x), row, excluded)]
            assert able, f"no {name} goes with {row}"
            row |= [max(able, key=lambda s: (new_pairs(s, row), -uses[s]))]
        row = {name: row[name] for name in factors}
        uses.update(row.items())
        rows.append(row)
        for pair in pairs_of(row, factors):
            left.pop(pair, None)
    return rows
