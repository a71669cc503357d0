"""The steps of one rank's blocks in the collectives of csrc/peer/device_*.cu, as their kernels go
through them; protocol_model.py explores the orders of all ranks'."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

Place = tuple[Hashable, ...]
Step = tuple[Any, ...]
# ("write", place, value)  ("read", place, value it must have)  ("release", flag, value)
# ("wait", flag, value)    ("compare", place, value: another one ends this rank)
# ("begin",) of a collective   ("join",) the end of a kernel: all blocks of the rank are there


@dataclass(frozen=True)
class Call:
    """reduce: sums a slice; gather: results go to all; once: there is one slice, which all add."""

    kind: str  # "all_reduce", "once", "reduce_scatter", "all_gather", "barrier", or a product:
    # "product_scatter", "product_all", "product_gather"
    rounds: int = 1
    direct: tuple[bool, ...] = ()  # of each rank: its arrays lie in its arena
    blocks: int | None = None  # of the grid

    @property
    def in_place(self) -> bool:
        return any(self.direct)

    def name(self) -> Hashable:
        return self.kind, self.rounds, self.blocks


@dataclass
class Program:
    """Steps of one block of one rank's grid, over many collectives. faults: what is left out."""

    rank: int
    size: int
    block: int
    blocks: int
    faults: frozenset[str] = frozenset()
    steps: list[Step] = field(default_factory=list)
    epoch: int = 0
    round: int = 0
    calls: int = 0

    def peers(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def meet(self) -> None:
        self.epoch += 1
        for peer in self.peers():
            self.steps.append(("release", ("flag", peer, self.block, self.rank), self.epoch))
        for peer in self.peers():
            self.steps.append(("wait", ("flag", self.rank, self.block, peer), self.epoch))

    def cell(self, owner: int, what: str, part: int, round: int) -> Place:
        parity = 0 if "one buffer" in self.faults else (self.round + round) % 2
        return (what, owner, self.block, part, parity)

    def letter(self, to: int, by: int) -> Place:
        return ("letter", to, self.block, by, 0 if "one letter" in self.faults else self.calls % 2)

    def array(self, owner: int, part: int, number: int) -> Place:
        """In an arena; another block has this element in each call."""
        element = (self.block + number) % self.blocks
        return ("array", owner, part, element)

    def product(self, call: Call, number: int) -> None:
        """Kernels one after the other: a meeting, the product, for all rows on all ranks a meeting
        again. A unit of a segment is written by one block, and read by another of its rank."""
        add, rank = self.steps.append, self.rank
        counted = 1 if "one number" in self.faults else number + 1
        given, taken = self.block, (self.block + 1) % self.blocks
        self.meeting(call, "no entry")
        for peer in self.peers():
            add(("write", ("part", peer, rank, given), (number, rank)))
            add(("release", ("tile", peer, rank, given), counted))
        for peer in self.peers():
            if "no tile flags" not in self.faults:
                add(("wait", ("tile", rank, peer, taken), counted))
            add(("read", ("part", rank, peer, taken), (number, peer)))
        if call.kind == "product_all":
            for peer in self.peers():
                add(("write", ("row", peer, rank, taken), number))
            self.meeting(call, "no exit")
            self.steps.append(("join",))
            for peer in self.peers():  # the caller
                add(("read", ("row", rank, peer, taken), number))

    def meeting(self, call: Call, unless: str) -> None:
        """A kernel that compares letters, and no more."""
        self.steps += [("join",), ("begin",)]
        for peer in self.peers():
            self.steps.append(("write", self.letter(peer, self.rank), call.name()))
        if unless not in self.faults:
            self.meet()
            for peer in self.peers():
                self.steps.append(("compare", self.letter(self.rank, peer), call.name()))
        self.calls += 1
        self.round += 1
        self.steps.append(("join",))

    def collective(self, call: Call, number: int) -> None:
        """Its parts are slices of all ranks; number: of the collective."""
        if call.kind.startswith("product"):
            self.product(call, number)
            return
        add, rank, size = self.steps.append, self.rank, self.size
        direct = call.direct[rank] if call.direct else False
        moves = call.kind == "all_gather"
        parts = (
            []
            if call.kind == "barrier"
            else [0]
            if call.kind == "once" or moves
            else list(range(size))
        )
        own = 0 if call.kind == "once" else rank
        boundary: list[Step] = [] if "no kernel boundaries" in self.faults else [("join",)]
        self.steps += boundary  # the kernel before this one: the caller writes its arrays
        for part in parts if direct else []:
            add(("write", self.array(rank, part, number), (number, rank)))
        if call.kind == "all_reduce" and direct:
            for part in parts:
                add(("write", ("out", *self.array(rank, part, number)[1:]), None))
        self.steps += boundary
        if call.blocks is not None and self.block >= call.blocks:
            return
        add(("begin",))
        said = [("write", self.letter(peer, rank), call.name()) for peer in self.peers()]
        if "letter behind the flag" not in self.faults:
            self.steps += said
        last = call.kind == "all_reduce" or call.in_place
        if "no exit" in self.faults:
            last = False
        rounds = 1 if call.direct and all(call.direct) else call.rounds
        for round in range(rounds + last):
            if round < rounds and not direct:
                for part in parts:
                    if part != rank or call.kind == "once" or moves:
                        add(("write", self.cell(rank, "piece", part, round), (number, rank, round)))
            if not (
                ("no entry" in self.faults and round == 0) or ("no rounds" in self.faults and round)
            ):
                self.meet()
            if round == 0 and "letter behind the flag" in self.faults:
                self.steps += said
            if round == 0:
                for peer in self.peers():
                    add(("compare", self.letter(rank, peer), call.name()))
            elif call.kind == "all_reduce":
                self.collect(call, number, round - 1, direct)
            if round < rounds and parts:
                for peer in self.peers():
                    there = call.direct[peer] if call.direct else False
                    part = 0 if moves else own
                    if there:
                        add(("read", self.array(peer, part, number), (number, peer)))
                    else:
                        add(("read", self.cell(peer, "piece", part, round), (number, peer, round)))
                if call.kind == "all_reduce":
                    self.store(call, number, round)
        self.round += rounds
        self.calls += 1

    def store(self, call: Call, number: int, round: int) -> None:
        for peer in self.peers():
            if call.direct and call.direct[peer]:
                there = ("out", *self.array(peer, self.rank, number)[1:])
            else:
                there = self.cell(peer, "result", self.rank, round)
            self.steps.append(("write", there, ("sum", number, round)))

    def collect(self, call: Call, number: int, round: int, direct: bool) -> None:
        for part in self.peers():
            there = self.cell(self.rank, "result", part, round)
            if direct:  # the caller may read it
                there = ("out", *self.array(self.rank, part, number)[1:])
                if round + 1 < (1 if all(call.direct) else call.rounds):
                    continue
            self.steps.append(("read", there, ("sum", number, round)))


def programs(
    size: int,
    calls: Sequence[Call] | Sequence[Sequence[Call]],
    faults: Sequence[str] = (),
    blocks: int = 1,
) -> list[Program]:
    """calls: of all ranks, or of each."""
    found = []
    for rank in range(size):
        own = calls if isinstance(calls[0], Call) else calls[rank]
        for block in range(blocks):
            program = Program(rank, size, block, blocks, frozenset(faults))
            for number, call in enumerate(own):
                assert isinstance(call, Call)
                program.collective(call, number)
            program.steps.append(("join",))
            found.append(program)
    return found
