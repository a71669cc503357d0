"""The protocol of csrc/peer/device_flags.cuh as a model, and every order in which ranks can run it.

Threads are blocks of ranks' kernels. Plain reads and writes are not ordered by themselves: each
access carries the clock of its thread, flags carry vector clocks from the thread that releases
them to the one that acquires them, and an access that is not ordered behind the last write to its
place (a write: nor behind the reads of what was there) is a race: on a GPU it could see an older
value, or one from the future. So what is plain runs at once; so do releases (a wait may find an
older value as well), but those of a rank that may die before them; only waits make orders differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from protocol_program import Place, Program, Step


class Violation(Exception):
    pass


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
