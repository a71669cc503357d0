"""How a bucket is cut over the data axis."""

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
