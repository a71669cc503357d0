"""A training step of GPT 30M and 124M at layouts of two ranks, one core a rank: how much more they
do than one rank, and beside PyTorch's DDP, FSDP, TP and PP.

python benchmarks/layouts.py [--models 30M,124M] [--rounds 5] [--modes single,ddp,fsdp,tp,pp]
                             [--torch PYTHON] [--json FILE]

plait's layouts (of the modes) each take turns with 1x1x1, step by step: data 2 with as large a
batch for each rank; tensor 2, and pipeline 2 by 1F1B with 4 microbatches, with the same batch in
all; and 1x1x1 with those 4 microbatches, which tells what smaller products cost by themselves.
Scaling is in tokens/s against 1x1x1 with its whole batch at once: median of the rounds, and range.
The limit of pipeline 2 is what whole layers on two stages could give by their costs: 1.71 where
stages are equal, less where the head of a large vocabulary is more than half of the model.
"exposed": the seconds in which each rank communicated or waited instead of computing. Then each
layout takes turns with PyTorch (peers/torch_layouts.py), with the C library's memory as it comes
and tuned. See bubble.py for what stages wait.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from bubble import by_cost, makespan
from sizes import BATCH, GPT, positions, vocabulary
from training import ONE_THREAD, side, sizes
from turns import TUNED, Side, ratio_text, rounds

MICROBATCHES = 4
ONE = "1x1x1"
MODES = {"single": ONE, "ddp": "2x1x1", "fsdp": "2x1x1", "tp": "1x2x1", "pp": "1x1x2"}


def batch_of(model: str) -> int:
    """Samples of a step on one rank."""
    return max(BATCH[model], MICROBATCHES)


def plait(model: str, layout: str, microbatches: int = 1) -> Side:
    batch = batch_of(model)
    if sizes(layout)[2] > 1:
        microbatches = MICROBATCHES
    return side(model, layout, batch * sizes(layout)[0], batch // microbatches)


def line(name: str, each: Side, tokens: int, more: str) -> None:
    seconds = statistics.median(each.seconds)
    exposed = [f"{x:.3f}" for x in each.about.get("exposed", [])]
    print(
        f"  {name:46} {seconds:7.3f} s {tokens / seconds:6.0f} tokens/s  {more}, "
        f"{each.about['memory']} MB" + (f", exposed {' and '.join(exposed)} s" if exposed else ""),
        flush=True,
    )


def record(each: Side, **more: Any) -> dict[str, Any]:
    return {"seconds": each.seconds, "cpu": each.cpu, "first": each.first, **each.about, **more}


def scaling(model: str, a: argparse.Namespace) -> dict[str, Any]:
    """Each of plait's layouts in turn with one rank."""
    tokens = batch_of(model) * positions(model)
    one, found = plait(model, ONE), {}
    others = {layout: (layout, 1) for layout in (MODES[mode] for mode in a.modes) if layout != ONE}
    if MODES["pp"] in others:
        others[f"{ONE}, {MICROBATCHES} microbatches"] = ONE, MICROBATCHES
    for name, (layout, microbatches) in others.items():
        each, begin = plait(model, layout, microbatches), len(one.seconds)
        rounds({ONE: one, name: each}, a.rounds, warm_up=1)  # two at a time: memory
        each.close()
        work, against = sizes(layout)[0], one.seconds[begin:]
        more = f"{ratio_text(each.seconds, against, work)} x {ONE}"
        if layout == MODES["pp"]:
            more += f" (limit {limit(model):.2f})"
        line(f"plait {name}", each, tokens * work, more)
        found[name] = record(each, one=against)
    one.close()
    line(f"plait {ONE}", one, tokens, "all of its rounds")
    return found | {ONE: record(one)}


def limit(model: str) -> float:
    """How many times one rank's speed two stages could have, by the layers' costs."""
    stages = by_cost(model, MICROBATCHES, batch_of(model) // MICROBATCHES)
    return sum(sum(stage.values()) for stage in stages) / makespan(stages, MICROBATCHES)


def first_blocks(model: str) -> int:
    """Blocks of plait's first stage, for PyTorch's to have as many."""
    from plait import models
    from plait.parallel.partition import stage_bounds

    specs = models.gpt(vocabulary=vocabulary(model), **GPT[model])
    return stage_bounds(specs, 2, batch_of(model) // MICROBATCHES)[1] - 1


def beside(model: str, mode: str, a: argparse.Namespace) -> dict[str, Any]:
    """plait's layout and a way of PyTorch's in turn."""
    ours = plait(model, MODES[mode])
    ranks = sizes(MODES[mode])[3]
    tokens = batch_of(model) * positions(model) * sizes(MODES[mode])[0]
    script = str(Path(__file__).with_name("peers") / "torch_layouts.py")
    numbers = [str(n) for n in (batch_of(model), MICROBATCHES, first_blocks(model))]
    words = [a.torch, script, model, mode]
    found = {}
    for precision in ("autocast", "masters"):
        for tuned, more in (("", {}), (", tuned malloc", TUNED)):
            peer = Side([*words, precision, *numbers], ranks, {**ONE_THREAD, **more})
            start = len(ours.seconds)
            rounds({"plait": ours, "peer": peer}, a.rounds, warm_up=1)
            peer.close()
            against, cpu = ours.seconds[start:], ours.cpu[start:]
            text = f"plait is {ratio_text(against, peer.seconds)}"
            text += f", in CPU seconds {ratio_text(cpu, peer.cpu)}"
            name = f"torch {mode} {precision}{tuned}"
            line(name, peer, tokens, text)
            found[name] = record(peer, plait=against, plait_cpu=cpu)
    ours.close()
    return found


def modes(text: str) -> list[str]:
    if wrong := set(text.split(",")) - set(MODES):
        raise argparse.ArgumentTypeError(f"no such modes: {', '.join(wrong)}")
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="30M,124M")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modes", type=modes, default=list(MODES))
    parser.add_argument("--torch")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for model in a.models.split(","):
        print(f"{model}, {batch_of(model) * positions(model)} tokens a step at {ONE}")
        found[model] = scaling(model, a) if set(a.modes) - {"single"} else {}
        for mode in a.modes if a.torch else []:
            found[model] |= beside(model, mode, a)
        if a.json:
            a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
