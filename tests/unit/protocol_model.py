"""The protocol of csrc/peer/device_flags.cuh as a model, and every order in which ranks can run it.

Threads are blocks of ranks' kernels. Plain reads and writes are not ordered by themselves: each
access carries the clock of its thread, flags carry vector clocks from the thread that releases
them to the one that acquires them, and an access that is not ordered behind the last write to its
place (a write: nor behind the reads of what was there) is a race: on a GPU it could see an older
value, or one from the future. So what is plain runs at once; so do releases (a wait may find an
older value as well), but those of a rank that may die before them; only waits make orders differ.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Place = tuple[Hashable, ...]
Step = tuple[Any, ...]
# ("write", place, value)  ("read", place, value it must have)  ("release", flag, value)
# ("wait", flag, value)    ("compare", place, value: another one ends this rank)
# ("begin",) of a collective   ("join",) the end of a kernel: all blocks of the rank are there


class Violation(Exception):
    pass


# --- one rank's steps, as the kernels go through them ---------------------------------------------


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


# --- all orders -----------------------------------------------------------------------------------

Clock = tuple[int, ...]
Memory = dict[
    Place, tuple[Any, int, int, tuple[tuple[int, int], ...]]
]  # value, who wrote it and when, who read it and when
Flags = dict[Place, tuple[tuple[int, Clock], ...]]  # the last values, and what comes with them
Following = tuple["State", Memory, Flags]


@dataclass(frozen=True)
class State:
    at: tuple[int, ...]  # of every thread, the step that it has come to
    clocks: tuple[Clock, ...]
    failed: tuple[str, ...]  # of every rank: why, or ""
    aborted: tuple[bool, ...]
    gone: int  # rank that has died, or -1


class Explorer:
    """Runs programs in every order. dies: a rank that may stop anywhere; late: a rank may give up
    any wait, and tells its peers."""

    def __init__(self, threads: list[Program], *, dies: int | None = None, late: bool = False):
        self.threads, self.dies, self.late = threads, dies, late
        self.size = threads[0].size
        self.faults = threads[0].faults
        self.states = 0

    def run(self) -> set[tuple[str, ...]]:
        """How all ranks may end: "" or why they failed, "died"."""
        count = len(self.threads)
        zero = tuple(tuple(int(i == j) for j in range(count)) for i in range(count))
        state = State((0,) * count, zero, ("",) * self.size, (False,) * self.size, -1)
        memory: Memory = {}
        flags: Flags = {}
        for thread in range(count):
            state = self.plain(state, memory, flags, thread)
        seen, ends = {state}, set()
        stack = [(state, memory, flags)]
        while stack:
            state, memory, flags = stack.pop()
            self.states += 1
            followed = False
            for following in self.following(state, memory, flags):
                followed = True
                if following[0] not in seen:
                    seen.add(following[0])
                    stack.append(following)
            if not followed:
                ends.add(self.end(state))
        return ends

    def end(self, state: State) -> tuple[str, ...]:
        for thread, program in enumerate(self.threads):
            rank = program.rank
            if (
                state.at[thread] < len(program.steps)
                and rank != state.gone
                and not state.failed[rank]
            ):
                raise Violation(f"rank {rank} waits for ever at {program.steps[state.at[thread]]}")
        return tuple(
            "died" if rank == state.gone else state.failed[rank] for rank in range(self.size)
        )

    def following(self, state: State, memory: Memory, flags: Flags) -> Iterator[Following]:
        if self.dies is not None and state.gone < 0:
            yield replace(state, gone=self.dies), memory, flags
        for thread, program in enumerate(self.threads):
            rank, at = program.rank, state.at[thread]
            if rank == state.gone or state.failed[rank] or at == len(program.steps):
                continue
            step = program.steps[at]
            if step[0] == "join":
                yield from self.join(state, memory, flags, thread)
            if step[0] == "release":
                yield self.go_on(state, memory, flags, thread, step)
            if step[0] == "begin":
                if state.aborted[rank]:
                    yield self.fail(state, rank, "aborted"), memory, flags
                else:
                    yield self.go_on(state, memory, flags, thread)
            if step[0] == "wait":
                for value, clock in flags.get(step[1], ()):  # what a look at it may find
                    if value >= step[2]:
                        yield self.go_on(state, memory, flags, thread, None, clock)
                if state.aborted[rank]:
                    yield self.fail(state, rank, "aborted"), memory, flags
                if self.late:
                    yield self.fail(state, rank, "late"), memory, flags

    def fail(self, state: State, rank: int, why: str) -> State:
        failed = tuple(why if r == rank else x for r, x in enumerate(state.failed))
        if "goes on after a failure" in self.faults and why == "late":
            failed, at = state.failed, list(state.at)  # to the next collective
            for thread, program in enumerate(self.threads):
                if program.rank == rank:
                    steps = program.steps
                    at[thread] = next(
                        (i for i in range(at[thread], len(steps)) if steps[i][0] == "join"),
                        len(steps),
                    )
            return replace(state, at=tuple(at))
        aborted = tuple(x or (why == "late" and r != rank) for r, x in enumerate(state.aborted))
        return replace(state, failed=failed, aborted=aborted)

    def go_on(
        self,
        state: State,
        memory: Memory,
        flags: Flags,
        thread: int,
        release: Step | None = None,
        seen: Clock | None = None,
    ) -> Following:
        memory, flags = dict(memory), dict(flags)
        if release:
            state = self.release(state, flags, thread, release)
        clocks = list(state.clocks)
        if seen is not None and "no acquire" not in self.faults:
            clocks[thread] = tuple(map(max, clocks[thread], seen))
        state = replace(
            state, at=_put(state.at, thread, state.at[thread] + 1), clocks=tuple(clocks)
        )
        return self.plain(state, memory, flags, thread), memory, flags

    def release(self, state: State, flags: Flags, thread: int, step: Step) -> State:
        clock = state.clocks[thread]
        carried = tuple(0 for _ in clock) if "no release" in self.faults else clock
        flags[step[1]] = (*flags.get(step[1], ()), (step[2], carried))[-3:]
        after = _put(clock, thread, clock[thread] + 1)
        return replace(
            state, clocks=tuple(after if i == thread else c for i, c in enumerate(state.clocks))
        )

    def join(self, state: State, memory: Memory, flags: Flags, thread: int) -> Iterator[Following]:
        rank = self.threads[thread].rank
        own = [t for t, program in enumerate(self.threads) if program.rank == rank]
        if thread != own[0] or any(
            self.threads[t].steps[state.at[t] : state.at[t] + 1] != [("join",)] for t in own
        ):
            return
        together = tuple(map(max, zip(*(state.clocks[t] for t in own), strict=True)))
        clocks = [together if i in own else c for i, c in enumerate(state.clocks)]
        for t in own:
            clocks[t] = _put(clocks[t], t, clocks[t][t] + 1)
        at = tuple(x + (i in own) for i, x in enumerate(state.at))
        state, memory, flags = (
            replace(state, clocks=tuple(clocks), at=at),
            dict(memory),
            dict(flags),
        )
        for t in own:
            state = self.plain(state, memory, flags, t)
        yield state, memory, flags

    def plain(self, state: State, memory: Memory, flags: Flags, thread: int) -> State:
        """All up to the next step that others have a part in."""
        program, at = self.threads[thread], state.at[thread]
        for at in range(state.at[thread], len(program.steps) + 1):
            step = program.steps[at] if at < len(program.steps) else ("end",)
            if step[0] == "release" and program.rank != self.dies:
                state = self.release(state, flags, thread, step)
            elif (step[0] == "begin" and not self.late) or (
                step[0] == "join" and program.blocks == 1
            ):
                pass
            elif step[0] in ("read", "write", "compare"):
                if not self.access(state.clocks[thread], memory, thread, step):
                    return self.fail(
                        replace(state, at=_put(state.at, thread, at)), program.rank, "differs"
                    )
            else:
                break
        return replace(state, at=_put(state.at, thread, at))

    def access(self, clock: Clock, memory: Memory, thread: int, step: Step) -> bool:
        """False if a comparison finds something else."""
        what, place, value = step
        rank = self.threads[thread].rank
        found, writer, written, reads = memory.get(place, (None, thread, 0, ()))
        if clock[writer] < written:
            raise Violation(f"rank {rank}: {what} of {place} races with the write of {found}")
        if what == "write":
            for reader, read in reads:
                if clock[reader] < read:
                    raise Violation(f"rank {rank}: write to {place} races with a read of {found}")
            memory[place] = (value, thread, clock[thread], ())
            return True
        if found != value and what == "read":
            raise Violation(f"rank {rank} reads {found} at {place}, not {value}")
        memory[place] = (
            found,
            writer,
            written,
            (*(r for r in reads if r[0] != thread), (thread, clock[thread])),
        )
        return bool(found == value)


def _put(all_: tuple[int, ...], which: int, x: int) -> tuple[int, ...]:
    return (*all_[:which], x, *all_[which + 1 :])
