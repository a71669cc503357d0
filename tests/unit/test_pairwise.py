"""All pairs really occur in the rows, what is excluded does not, and the rows stay few."""

from itertools import combinations, product

import cases_bits
import pytest
from engines import factorisations
from pairwise import pairs_of, pairwise, wanted

RANKS = (1, 2, 3, 4, 6, 8)


def missing(rows, factors, excluded):
    """Pairs of settings that no row has, found without pairwise's own bookkeeping."""
    return [
        ((one, x), (two, y))
        for one, two in combinations(factors, 2)
        for x, y in product(factors[one], factors[two])
        if not excluded((one, x), (two, y))
        and not excluded((two, y), (one, x))
        and not any(row[one] == x and row[two] == y for row in rows)
    ]


@pytest.mark.parametrize("ranks", RANKS)
def test_every_pair_of_the_suite_occurs(ranks):
    factors = cases_bits.factors(ranks)
    rows = pairwise(factors, cases_bits.excluded)
    assert missing(rows, factors, cases_bits.excluded) == []
    for row in rows:
        assert list(row) == list(factors)
        for one, two in combinations(row.items(), 2):
            assert not cases_bits.excluded(one, two), row
            assert not cases_bits.excluded(two, one), row
    others = [len(values) for name, values in factors.items() if name != "layout"]
    least = len(factors["layout"]) * max(others)
    assert len(rows) <= max(least, 12) + 8
    assert rows == pairwise(factors, cases_bits.excluded)


def test_a_pair_that_is_missing_is_found():
    factors = cases_bits.factors(4)
    rows = pairwise(factors, cases_bits.excluded)
    only = [  # rows without which a pair would be missing
        row
        for row in rows
        if missing([x for x in rows if x is not row], factors, cases_bits.excluded)
    ]
    assert len(only) > len(rows) // 2
    left = [row for row in rows if row["layout"] != (2, 2, 1)]
    assert (("layout", (2, 2, 1)), ("microbatch", 5)) in missing(left, factors, cases_bits.excluded)


def test_what_is_excluded_and_nothing_else():
    """A ResNet's given microbatches; sequence parallel of what has no sequence."""
    factors = cases_bits.factors(4)
    every = {
        ((one, x), (two, y))
        for one, two in combinations(factors, 2)
        for x, y in product(factors[one], factors[two])
    }
    out = every - set(wanted(factors, cases_bits.excluded))
    assert out == {
        *((("model", "resnet"), ("microbatch", size)) for size in (3, 5, 13)),
        *((("model", model), ("sequence_parallel", True)) for model in ("resnet", "mlp")),
    }


def test_every_layout_trains_the_gpt():
    layouts = [
        row["layout"]
        for ranks in RANKS
        for row in pairwise(cases_bits.factors(ranks), cases_bits.excluded)
        if row["model"] == "gpt"
    ]
    assert set(layouts) == {layout for ranks in RANKS for layout in factorisations(ranks)}
    assert len(set(layouts)) == 32


def test_a_setting_that_goes_with_nothing_is_said():
    factors = {"a": (1, 2), "b": (1, 2), "c": (1,)}
    with pytest.raises(AssertionError, match="no c goes with"):
        pairwise(factors, lambda one, two: one == ("a", 2) and two[0] == "c")


def test_pairs_of_a_row():
    row = {"a": 1, "b": 2, "c": 3}
    assert len(pairs_of(row, row)) == 3
