"""Training GPT-2 on one GPU beside PyTorch compiled, in turn in one process; and its loss curve.

python benchmarks/gpu_train.py [--model 124M] [--batch 64] [--microbatch 16] [--rounds 9] [--json J]
    [--curve] [--no-torch]: 1024 tokens a sample, bfloat16 with float32 masters, AdamW, tied head.

tokens/s are medians over rounds of one step each. MFU = (6 N + 6 L d S) tokens/s / 989.4e12, N all
parameters (the head is the embedding), L layers of width d, S positions (causal). --curve: 50 steps
of a small GPT on the GPU and on the CPU; the largest difference of their losses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from turns import ratio_text

from plait import backend, models
from plait.mesh import Mesh
from plait.optim import AdamW
from plait.train.engine import Engine, Settings
from plait.train.grains import auto_grains

sys.path.insert(0, str(Path(__file__).with_name("peers")))

VOCABULARY = {"tiny": 64, "124M": 50304, "1.5B": 50304}
SIZES = {
    "tiny": {"layers": 1, "hidden_dim": 32, "heads": 1, "sequence_length": 16},
    "124M": {"layers": 12, "hidden_dim": 768, "heads": 12, "sequence_length": 1024},
    "1.5B": {"layers": 48, "hidden_dim": 1600, "heads": 25, "sequence_length": 1024},
}
PEAK = 989.4e12  # dense bfloat16 of an H100 or H200 SXM, by its data sheet


def samples(batch: int, model: str) -> tuple[Any, Any]:
    shape = batch, SIZES[model]["sequence_length"] + 1
    tokens = np.random.default_rng(0).integers(0, VOCABULARY[model], shape, np.int32)
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def ours(model: str, batch: int, microbatch: int) -> tuple[Callable[[], float], int]:
    """A step, which gives its loss; and how many parameters there are."""
    specs = models.gpt(vocabulary=VOCABULARY[model], **SIZES[model])
    leaves = auto_grains(specs, batch)
    mesh = Mesh(grains=dict(zip(("data", "tensor"), leaves, strict=True)))
    engine = Engine(specs, mesh.for_device(), AdamW(weight_decay=0.1), Settings(batch, microbatch))
    inputs, targets = samples(batch, model)
    done = iter(range(1 << 30))
    return lambda: engine.step(next(done), 3e-4, inputs, targets).loss, engine.parameter_count


def theirs(model: str, batch: int, microbatch: int, form: str) -> Callable[[], float]:
    """form: "autocast", or "masters" (bfloat16 weights with float32 masters)."""
    import torch
    import torch_step

    torch_step.VOCABULARY = VOCABULARY[model]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = torch_step.build_gpt(torch, SIZES[model], False).to(device)
    if form == "masters":
        net = net.bfloat16()
    update = torch_step.updates(torch, list(net.parameters()), form)
    call = torch.compile(net) if device == "cuda" else net
    inputs, targets = (torch.from_numpy(x).long().to(device) for x in samples(batch, model))

    def step() -> float:
        total = torch.zeros((), device=device)
        for first in range(0, batch, microbatch):
            part = slice(first, first + microbatch)
            with torch.autocast(device, torch.bfloat16, enabled=form == "autocast"):
                value = call(inputs[part], targets[part]) * (microbatch / batch)
            value.backward()
            total += value.detach()
        update()
        return float(total)

    return step


def curve(steps: int, small: bool) -> dict[str, Any]:
    """Losses of a small GPT, each batch of which comes back every eight steps, on both backends."""
    sizes = {"layers": 4, "hidden_dim": 256, "heads": 4, "sequence_length": 128}
    if small:
        sizes = {"layers": 1, "hidden_dim": 16, "heads": 2, "sequence_length": 8}
    length = sizes["sequence_length"]
    found: dict[str, Any] = {}
    for name in ("cuda", "cpu"):
        backend.use(name)
        specs = models.gpt(vocabulary=512, **sizes)
        mesh = Mesh(grains={"data": 8, "tensor": 2})
        engine = Engine(specs, mesh.for_device(), AdamW(weight_decay=0.1), Settings(8, 4))
        batches = np.random.default_rng(1).integers(0, 512, (8, 8, length + 1), np.int32)
        losses = []
        for step in range(steps):
            tokens = batches[step % 8]
            losses.append(engine.step(step, 1e-3, tokens[:, :-1].copy(), tokens[:, 1:].copy()).loss)
        found[name] = losses
    apart = [abs(a - b) for a, b in zip(found["cuda"], found["cpu"], strict=True)]
    found["largest difference"] = max(apart)
    print(f"loss curve, {steps} steps: at most {max(apart):.2e} apart", flush=True)
    return found


def wait() -> None:
    """Until the device has done all it was given."""
    backend.synchronize()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="124M", choices=SIZES)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--microbatch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--no-torch", action="store_true")
    a = parser.parse_args()
    found: dict[str, Any] = {"model": a.model, "batch": a.batch}
    if a.curve:
        found["curve"] = curve(3 if a.model == "tiny" else 50, a.model == "tiny")
    device, sizes = backend.use("cuda"), SIZES[a.model]
    found["device"] = device
    print(device, flush=True)
    step, parameters = ours(a.model, a.batch, a.microbatch)
    tokens = a.batch * sizes["sequence_length"]
    attention = 6 * sizes["layers"] * sizes["hidden_dim"] * sizes["sequence_length"]

    def timed(each: Callable[[], float]) -> float:
        wait()
        start = time.perf_counter()
        each()
        wait()  # the optimizer's kernels too
        return time.perf_counter() - start

    def tell(name: str, seconds: list[float], beside: list[float] | None = None) -> None:
        rate = tokens / statistics.median(seconds)
        mfu = (6 * parameters + attention) * rate / PEAK
        text = f"{name:20} {rate:10.0f} tokens/s, {mfu:.1%} MFU"
        found[name] = {"seconds": seconds, "tokens/s": rate, "mfu": mfu}
        if beside:
            found[name]["plait beside it"] = beside
            text += f"; plait is {ratio_text(beside, seconds)}"
        print(text, flush=True)
        if a.json:
            a.json.write_text(json.dumps(found, indent=1))

    print(f"plait: losses of the first steps {[round(step(), 4) for _ in range(4)]}", flush=True)
    tell("plait", [timed(step) for _ in range(a.rounds)])
    for form in () if a.no_torch else ("autocast", "masters"):
        name = f"PyTorch {form}"
        try:
            other = theirs(a.model, a.batch, a.microbatch, form)
            print(f"{name}: losses {[round(other(), 4) for _ in range(4)]}", flush=True)
            pairs = [(timed(step), timed(other)) for _ in range(a.rounds)]
        except Exception as error:  # a peer that does not run is told, and the rest goes on
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        tell(name, [pair[1] for pair in pairs], [pair[0] for pair in pairs])
        del other
    found["memory"] = backend.memory_bytes()
    print(f"device memory of plait: {found['memory'] / 1e9:.2f} GB", flush=True)
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
