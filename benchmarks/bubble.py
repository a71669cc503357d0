"""The bubble of 1F1B: how much of the ranks' time two pipeline stages wait.

python benchmarks/bubble.py [--model blocks] [--microbatches 4,8] [--rounds 7] [--samples 2]
                            [--json FILE]

The formula, (p - 1) / (m + p - 1) for p stages and m microbatches, is of stages that take equally
long and of messages that take none; the model "blocks" is eight GPT blocks between an embedding
and a head of 64 words. Measured: from the moment all ranks begin their first forward (after a
barrier) until the last one has ended its last backward, the share of all ranks' time in which they
did not compute: waits, messages, and what starting and polling them takes. The update after it has
no part in the formula, and none here.

Beside it, for stages that send the gradient of their input before they work out those of their
weights, as plait's do, what the layers' costs say (equal stages: 2 (p - 1) / (3 m + 2 (p - 1)),
which is less than the formula); and "as they computed": the same order of forwards and backwards,
each as long as it took here, with messages that take no time. So what is beyond that is plait's
(messages, and waits longer than needed), and the rest is of stages that are not equal, or the
machine's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sizes import GPT
from training import Run, problem, side
from turns import rounds, serve

# (part, microbatch): seconds. Parts are "forward", "backward" until its gradient is sent, and
# "weights", what backward does after that.
Durations = dict[tuple[str, int], float]
STAGES = 2


def makespan(durations: Sequence[Durations], microbatches: int) -> float:
    """How long 1F1B takes where actions wait for each other, and for nothing else."""
    from plait.parallel.schedule import one_f_one_b

    stages = len(durations)
    todo = [list(one_f_one_b(stage, stages, microbatches)) for stage in range(stages)]
    clock, done = [0.0] * stages, {}
    while any(todo):
        for stage, actions in enumerate(todo):
            while actions:
                kind, index = actions[0].kind, actions[0].microbatch
                neighbour = stage + (-1 if kind == "forward" else 1)
                needed = (neighbour, kind, index)
                if 0 <= neighbour < stages and needed not in done:
                    break
                begin = max(clock[stage], done.get(needed, 0.0))
                clock[stage] = done[stage, kind, index] = begin + durations[stage][kind, index]
                if kind == "backward":
                    clock[stage] += durations[stage]["weights", index]
                actions.pop(0)
    return max(clock)


def bubble(durations: Sequence[Durations], microbatches: int) -> float:
    """The share of all stages' time in which they wait, were there nothing but these actions."""
    whole = makespan(durations, microbatches)
    return 1 - sum(sum(stage.values()) for stage in durations) / (whole * len(durations))


def by_cost(model: str, microbatches: int, samples: int) -> list[Durations]:
    """Of the stages that plait makes, by what its costs say of the layers."""
    from plait.parallel.partition import cost, stage_bounds

    specs, _, _ = problem(model, 1)
    bounds = stage_bounds(specs, STAGES, samples)
    stages = [sum(cost(spec, samples) for spec in specs[a:b]) for a, b in pairwise(bounds)]
    return [
        {
            (part, index): seconds / 3
            for part in ("forward", "backward", "weights")
            for index in range(microbatches)
        }
        for seconds in stages
    ]


class Watch:
    """Times what a stage does in the schedule, on the clock that all ranks of a node share."""

    def __init__(self, engine: Any):
        from plait.comm.work import communication_seconds

        self.world, self.stage, self.train = engine.mesh.world, engine.stage, engine.stage.train
        self.waited = communication_seconds
        self.send = self.stage._send
        self.stage.train, self.stage._send = self._train, self._send
        self.sent = 0.0
        self.steps: list[tuple[float, list[Durations]]] = []  # whole, and of every rank

    def _computed(self) -> float:
        """Seconds so far without those of communication."""
        return time.perf_counter() - self.waited()

    def _send(self, *message: Any) -> None:
        self.sent = self._computed()
        self.send(*message)

    def _train(self, actions: Any, *inputs: Any) -> Any:
        durations: Durations = {}

        def watched() -> Any:
            for action in actions:
                before, self.sent = self._computed(), 0.0
                yield action
                after = self._computed()
                if action.kind == "backward":
                    sent = self.sent or after
                    durations["weights", action.microbatch] = after - sent
                    after = sent
                durations[action.kind, action.microbatch] = after - before

        self.world.barrier()
        begin = time.perf_counter()
        result = self.train(watched(), *inputs)
        end = time.perf_counter()
        begins, ends, every = zip(*self.world.all_gather_object((begin, end, durations)))
        self.steps.append((max(ends) - max(begins), list(every)))
        return result

    def tell(self) -> dict[str, Any]:
        """What this file prints of every step."""
        found = []
        for whole, every in self.steps:
            computed = [sum(durations.values()) for durations in every]
            found.append(
                {
                    "whole": whole,
                    "computed": computed,
                    "bubble": 1 - sum(computed) / (whole * len(every)),
                    "as they computed": bubble(every, len(every[0]) // 3),
                }
            )
        return {"steps": found}


def text(values: list[float]) -> str:
    """Median and range, in percent."""
    return f"{statistics.median(values):6.1%} ({min(values):.1%}..{max(values):.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(GPT), default="blocks")
    parser.add_argument("--microbatches", default="4,8")
    parser.add_argument("--samples", type=int, default=2, help="of a microbatch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("worker", nargs="*")
    a = parser.parse_args()
    if a.worker:
        run = Run(a.worker)
        watch = Watch(run.engine)
        serve(run.mesh.world.rank, run.step, watch.tell)
        return
    layout = f"1x1x{STAGES}"
    sides = {
        m: side(a.model, layout, m * a.samples, a.samples, file=__file__)
        for m in map(int, a.microbatches.split(","))
    }
    rounds(sides, a.rounds)
    steps = {m: each.about["steps"][-a.rounds :] for m, each in sides.items()}
    print(f"{a.model}, {layout}, 1F1B, {a.samples} samples a microbatch, one thread a rank")
    for m, each in sides.items():
        each.close()
        whole = statistics.median(step["whole"] for step in steps[m])
        computed = zip(*(step["computed"] for step in steps[m]), strict=True)
        stages = " and ".join(f"{statistics.median(seconds):.3f}" for seconds in computed)
        formula = (STAGES - 1) / (m + STAGES - 1)
        measured = [step["bubble"] for step in steps[m]]
        ideal = [step["as they computed"] for step in steps[m]]
        beyond = [x - y for x, y in zip(measured, ideal, strict=True)]
        points = 100 * (statistics.median(measured) - formula)
        costs = bubble(by_cost(a.model, m, a.samples), m)
        print(
            f"  {m} microbatches: {whole:.3f} s, of which stages compute {stages}\n"
            f"    bubble {text(measured)}, formula {formula:.1%}: {points:+.1f} points\n"
            f"    by the layers' costs {costs:.1%}, as they computed {text(ideal)}, beyond that "
            f"{text(beyond)}",
            flush=True,
        )
    if a.json:
        a.json.write_text(json.dumps(steps, indent=1))


if __name__ == "__main__":
    main()
