"""The mesh: the ranks of the world as a grid of data x tensor x pipeline.

Tensor ranks are neighbours, then pipeline stages, then replicas: what talks most is nearest. Ranks
that a launcher dealt out to its nodes in turn are put in the order of the nodes first.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plait.comm import Communicator, Leaves
from plait.comm.alone import Alone
from plait.comm.choose import on_hosts
from plait.comm.launcher import launcher
from plait.errors import UserError
from plait.job.hook import guard
from plait.job.world import mpi_world, silent_worlds

if TYPE_CHECKING:
    from mpi4py import MPI

    from plait.comm.for_device import DeviceAxes


@dataclass(frozen=True)
class Layout:
    """The sizes of the mesh axes."""

    data: int = 1
    tensor: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "pipeline"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"layout: {name} must be a positive integer, got {size!r}")

    def __str__(self) -> str:
        return f"{self.data}x{self.tensor}x{self.pipeline}"

    @property
    def ranks(self) -> int:
        return self.data * self.tensor * self.pipeline

    def coordinates(self, rank: int) -> Coordinates:
        """Where a world rank lies."""
        tensor, rest = rank % self.tensor, rank // self.tensor
        return Coordinates(rest // self.pipeline, tensor, rest % self.pipeline)

    def rank(self, at: Coordinates) -> int:
        """The world rank at these coordinates."""
        return (at.data * self.pipeline + at.pipeline) * self.tensor + at.tensor


@dataclass(frozen=True)
class Coordinates:
    """A rank's index on each mesh axis."""

    data: int
    tensor: int
    pipeline: int


class Mesh:
    """world, data, tensor, pipeline: this rank's communicators; layout, coordinates, grains.

    World ranks here are those of `world`, which the ranks of comm may have in another order.

    grains: leaves of the sums over the batch and over sharded dimensions, such as
    {"data": 8, "tensor": 2}; an axis left out has as many as ranks, and its bits then hold for
    this layout only. comm: an mpi4py communicator or a Communicator; left out, the world (MPI
    starts here, unless no launcher started this process; and an exception that a rank does not
    catch ends all of them from here on). All ranks of comm call this.

    Raises ValueError if the layout does not multiply to the ranks of the world, if there are fewer
    grains than ranks on an axis, or if a launcher started several worlds of one rank each.
    """

    def __init__(
        self,
        data: int = 1,
        tensor: int = 1,
        pipeline: int = 1,
        *,
        grains: Mapping[str, int] | None = None,
        comm: MPI.Intracomm | Communicator | None = None,
    ):
        self.layout = Layout(data, tensor, pipeline)
        self.grains = checked_grains(self.layout, grains)
        world = comm if isinstance(comm, Communicator) else world_communicator(comm)
        self.world = _by_node(world)
        self._made = [c for c in (world, self.world) if c is not comm]
        self._on_devices: list[DeviceAxes] = []  # shared by this mesh's copies
        if self.layout.ranks != self.world.size:
            raise UserError(_mismatch(self.layout, self.world.size))
        at = self.layout.coordinates(self.world.rank)
        self.coordinates = at
        leaves = {
            "data": Leaves.even(self.grains["data"], data),
            "tensor": Leaves.even(self.grains["tensor"], tensor),
            "pipeline": Leaves.even(pipeline, pipeline),
        }
        self.data = self._axis(at.tensor * pipeline + at.pipeline, at.data, leaves["data"])
        self.tensor = self._axis(at.data * pipeline + at.pipeline, at.tensor, leaves["tensor"])
        self.pipeline = self._axis(at.data * tensor + at.tensor, at.pipeline, leaves["pipeline"])

    def with_grains(self, data: int, tensor: int) -> Mesh:
        """This mesh with other grains; the communicators are the same ones."""
        other = copy.copy(self)
        other.grains = checked_grains(self.layout, {"data": data, "tensor": tensor})
        other.data = self.data.with_leaves(Leaves.even(data, self.data.size))
        other.tensor = self.tensor.with_leaves(Leaves.even(tensor, self.tensor.size))
        return other

    def for_device(self, room: int = 0) -> Mesh:
        """This mesh for arrays of the device in use, with `room` bytes on each rank for arrays of
        its axes' `empty`. Collective."""
        from plait.comm.for_device import DeviceAxes

        other = copy.copy(self)
        if not self._on_devices or not self._on_devices[-1].fits(room):
            axes = {"data": self.data, "tensor": self.tensor, "pipeline": self.pipeline}
            self._on_devices.append(DeviceAxes(self.world, axes, room))
        for name, found in self._on_devices[-1].axes.items():
            setattr(other, name, found.with_leaves(getattr(self, name).leaves))
        return other

    def close(self) -> None:
        """Gives back what the mesh's communicators hold (some MB, and some of the few communicators
        that an MPI has). Neither it nor its with_grains may be used any more. Collective."""
        while self._on_devices:
            self._on_devices.pop().close()
        for found in (self.pipeline, self.tensor, self.data, *reversed(self._made)):
            found.close()

    def _axis(self, color: int, key: int, leaves: Leaves) -> Communicator:
        found = self.world.split(color, key)
        assert found is not None
        return found.with_leaves(leaves)


def _by_node(world: Communicator) -> Communicator:
    """The same ranks, those of a node side by side; rank 0 stays rank 0."""
    order = sorted(range(world.size), key=lambda rank: (world.nodes.index(world.nodes[rank]), rank))
    if order == list(range(world.size)):
        return world
    found = world.split(0, order.index(world.rank))
    assert found is not None
    return found


def checked_grains(layout: Layout, grains: Mapping[str, int] | None) -> dict[str, int]:
    """grains, or else the layout's sizes. ValueError for fewer of them than ranks."""
    found = {"data": layout.data, "tensor": layout.tensor}
    for name, count in (grains or {}).items():
        if name not in found or not isinstance(count, int) or count < 1:
            raise ValueError(
                f'grains are positive integers for "data" and "tensor", got {name!r}: {count!r}'
            )
        found[name] = count
    for name, size in (("data", layout.data), ("tensor", layout.tensor)):
        if found[name] < size:
            needed = {**found, name: size}
            raise ValueError(
                f"layout {layout} has {name} size {size}, more than its {found[name]} grains: "
                f"give grains={needed} (this changes the bits of the result)"
            )
    return found


def world_communicator(comm: MPI.Intracomm | None = None) -> Communicator:
    """All ranks of comm, or of the world: then an exception that no rank catches ends them all.
    Raises as Mesh does for silent worlds of one rank."""
    started = launcher()
    if comm is None:
        if not started.launched and "mpi4py.MPI" not in sys.modules:
            return Alone()
        comm = mpi_world()
        if silent := silent_worlds(started, comm.size):
            raise UserError(silent)
        guard(comm)
    return on_hosts(comm)


def _mismatch(layout: Layout, size: int) -> str:
    fixed = layout.tensor * layout.pipeline
    if size % fixed == 0:
        mend = f"data={size // fixed} fits"
    else:
        mend = f"tensor x pipeline = {fixed} does not divide {size}"
    return (
        f"layout {layout} needs {layout.ranks} rank{'s' * (layout.ranks > 1)}, "
        f"the world has {size}: start {layout.ranks}, or change the layout ({mend})"
    )
