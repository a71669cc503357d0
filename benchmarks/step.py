"""A training step of GPT 30M and 124M, of a small ViT (vit) or of ResNet-18 (resnet18), one core a
rank: plait and PyTorch in turn.

python benchmarks/step.py [--models 30M,124M] [--ranks 1,2] [--rounds 7] [--torch PYTHON]
                          [--compile] [--json FILE]

PyTorch is run as `PYTHON` has it (another environment's; without --torch plait runs alone), each
way with the C library's memory as it comes and tuned to keep what was freed. Prints seconds a
step, tokens or images/s, how many times as fast plait is (median of the rounds, and range), the
same of the seconds that rank 0 had a core, the first step since the start, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from sizes import BATCH, RESNET, VIT, positions
from training import ONE_THREAD, side
from turns import TUNED, Side, ratio_text, rounds

# precision, and the form of the loss, or what a ViT classifies by
WAYS = [("autocast", "whole loss"), ("masters", "whole loss"), ("masters", "chunks loss")]
RESNET_WAYS = WAYS[:2]
VIT_WAYS = [(p, form) for form in ("mean", "class token") for p in ("autocast", "masters")]


def compare(model: str, ranks: int, a: argparse.Namespace) -> dict[str, Any]:
    plait = side(model, f"{ranks}x1x1", BATCH[model] * ranks, BATCH[model], a.grains)
    tokens = BATCH[model] * positions(model) * ranks
    units = "images" if model in RESNET else "tokens"
    print(f"{model}, data {ranks}, {tokens} {units} a step, one thread a rank")
    found = {}

    def report(name: str, side: Side, start: int) -> None:
        seconds, against, cpu = statistics.median(side.seconds), plait.seconds[start:], plait.cpu
        found[name] = {
            "seconds": side.seconds, "plait": against, "cpu": side.cpu, "plait_cpu": cpu[start:],
            "first": side.first, **side.about,
        }  # fmt: skip
        print(
            f"  {name:48} {seconds:7.3f} s {tokens / seconds:8.0f} {units}/s  plait is "
            f"{ratio_text(against, side.seconds):20} in CPU seconds "
            f"{ratio_text(cpu[start:], side.cpu):20} first step after {side.first:5.1f} s, "
            f"{side.about['memory']} MB",
            flush=True,
        )

    script = str(Path(__file__).with_name("peers") / "torch_step.py")
    ways = VIT_WAYS if model in VIT else RESNET_WAYS if model in RESNET else WAYS
    for precision, form in ways if a.torch else []:
        for tuned, more in (("", {}), (", tuned malloc", TUNED)):
            for compiled in ((), ("compile",)) if a.compile else ((),):
                command = [a.torch, script, model, str(ranks), precision, form, *compiled]
                peer = Side(command, ranks, {**ONE_THREAD, **more})
                start = len(plait.seconds)
                rounds({"plait": plait, "peer": peer}, a.rounds)  # two at a time: memory
                peer.close()
                name = f"torch {precision}, {form}{tuned}{''.join(', ' + c for c in compiled)}"
                report(name, peer, start)
    if not a.torch:
        rounds({"plait": plait}, a.rounds)
    plait.close()
    report("plait", plait, 0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="30M,124M")
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--grains", choices=("auto", "layout"), default="auto")
    parser.add_argument("--torch")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    found = {
        f"{model}, data {ranks}": compare(model, ranks, a)
        for model in a.models.split(",")
        for ranks in map(int, a.ranks.split(","))
    }
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
