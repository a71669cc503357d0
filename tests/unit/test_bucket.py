"""How a bucket is cut over the data axis."""

import pytest

from plait.backend import float32
from plait.comm.alone import Alone
from plait.comm.tree import Leaves
from plait.nn import Build
from plait.parallel.bucket import Bucket


def test_no_column_of_any_parameter() -> None:
    """As of a stage whose layers have fewer columns than there are tensor ranks."""
    build = Build(Alone().with_leaves(Leaves(2, (0, 1))))  # the first of two tensor ranks
    bucket = Bucket([build.split("x", (1, 8))], Alone(), build.comm, 1, float32, 1)
    assert bucket.size == 0
    assert bucket._cut(3) == [0, 0, 0, 0]


def test_a_parameter_by_rows_is_split() -> None:
    build = Build(Alone().with_leaves(Leaves(2, (0, 1))))
    with pytest.raises(ValueError, match=r"parameter x is by_rows and replicated"):
        build.replicated("x", (3, 8), by_rows=True)
