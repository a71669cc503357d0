"""Kernels of one GPU beside cuBLAS and PyTorch, in turn in one process; random inputs.

python benchmarks/gpu_kernels.py [--only matmul,attention,memory] [--rounds 20] [--json F] [--small]

Each call is timed by events, after a pass over memory that empties L2; the sides take turns. Prints
the median of each side and how many times as fast plait is (median of the rounds' ratios, and
range). Kernels bound by memory are held against a copy's bandwidth, measured in the same run.
--small: sizes that only show that everything runs, on any device or on none.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_sides import CUDA, DEVICE, Call, near, numbers, report, turns

from plait import backend
from plait.backend import bfloat16, float32, kernels, to_device

# --- matrix products ------------------------------------------------------------------------------


def matmul(found: dict[str, Any], rounds: int, small: bool) -> None:
    cubes = [64] if small else [4096, 6144, 8192]
    for n in cubes:
        for kind in ("NN", "NT", "TN"):
            product(found, rounds, n, n, n, kind, False)
    tokens, widths = (96, [(32, 64)]) if small else (8192, GPT_SHAPES)
    for k, n in widths:
        product(found, rounds, tokens, k, n, "NT", True)  # forward, with bias
        product(found, rounds, tokens, n, k, "NN", False)  # gradient of x
        product(found, rounds, n, tokens, k, "TN", False, accumulate=True)  # of the weight
    for n in cubes:
        product(found, rounds, n, n, n, "NN", False, leaves=2)
    for c in [32] if small else [768, 1600]:
        epilogue(found, rounds, tokens, c, 4 * c, "gelu")
        epilogue(found, rounds, tokens, c, 4 * c, "gelu_backward")
        epilogue(found, rounds, tokens, 4 * c, c, "residual")
        epilogue(found, rounds, tokens, c, c, "residual")


GPT_SHAPES = [
    (768, 2304), (768, 768), (768, 3072), (3072, 768), (768, 50304), (1600, 4800), (1600, 6400),
    (6400, 1600),
]  # fmt: skip


def product(
    found: dict[str, Any], rounds: int, m: int, k: int, n: int, kind: str, biased: bool,
    accumulate: bool = False, leaves: int = 1,
) -> None:  # fmt: skip
    a, their_a = numbers(k, m) if kind[0] == "T" else numbers(m, k)
    b, their_b = numbers(n, k) if kind[1] == "T" else numbers(k, n)
    bias, their_bias = numbers(n)
    cut = [k * leaf // leaves for leaf in range(leaves + 1)]
    out = backend.zeros((m, n), float32 if accumulate else bfloat16)
    left = their_a.T if kind[0] == "T" else their_a
    right = their_b.T if kind[1] == "T" else their_b
    theirs = torch.zeros((m, n), dtype=torch.bfloat16, device=DEVICE)
    total = torch.zeros((m, n), dtype=torch.float32, device=DEVICE)

    def ours() -> None:
        kernels.matmul(
            a, b, kind[0] == "T", kind[1] == "T", cut, accumulate, 0, bias if biased else None, out
        )

    def cublas() -> None:
        torch.mm(left, right, out=theirs)
        if biased:
            theirs.add_(their_bias)
        if accumulate:
            total.add_(theirs)

    ours()
    cublas()
    near(out, total if accumulate else theirs, 1e-2)
    text = f"matmul {m} x {k} x {n} {kind}"
    text += " + bias" * biased + " + sum" * accumulate + f", {leaves} leaves" * (leaves > 1)
    report(text, {"plait": ours, "cuBLAS": cublas}, rounds, found, 2e-12 * m * k * n, "TFLOP/s")


def epilogue(found: dict[str, Any], rounds: int, m: int, k: int, n: int, kind: str) -> None:
    """GELU and its input, GELU's gradient, or the residual, beside cuBLAS (with its bias) and
    PyTorch's kernel, and beside plait's own kernel after its matmul."""
    stored_nk = (
        kind != "residual"
    )  # as column-parallel weights, and the input gradient of row-parallel
    a, their_a = numbers(m, k)
    b, their_b = numbers(n, k) if stored_nk else numbers(k, n)
    bias, their_bias = numbers(n)
    other, their_other = numbers(m, n)
    out, between = (backend.empty((m, n), bfloat16) for _ in range(2))
    right = their_b.T if stored_nk else their_b
    theirs = torch.zeros((m, n), dtype=torch.bfloat16, device=DEVICE)
    result: list[torch.Tensor] = []
    product = a, b, False, stored_nk, [0, k], False, 0, bias if kind != "gelu_backward" else None

    def ours() -> None:
        kernels.matmul(*product, out, **{kind: other})

    def apart() -> None:
        kernels.matmul(*product, between)
        if kind == "gelu":
            kernels.gelu_forward(between, other)
        elif kind == "gelu_backward":
            kernels.gelu_backward(between, other, out)
        else:
            kernels.add([other, between], out)

    def cublas() -> None:
        if kind == "gelu_backward":
            torch.mm(their_a, right, out=theirs)
            made = torch.ops.aten.gelu_backward(theirs, their_other, approximate="tanh")
        else:
            torch.addmm(their_bias, their_a, right, out=theirs)
            if kind == "gelu":
                made = torch.nn.functional.gelu(theirs, approximate="tanh")
            else:
                made = torch.add(their_other, theirs)
        result[:] = [made]

    ours()
    cublas()
    near(other if kind == "gelu" else out, result[0], 2e-2)
    text = f"matmul {m} x {k} x {n} + {kind.replace('_', ' ')}"
    report(
        text, {"plait": ours, "cuBLAS": cublas, "apart": apart}, rounds, found, 2e-12 * m * k * n,
        "TFLOP/s",
    )  # fmt: skip


# --- attention ------------------------------------------------------------------------------------


def attention(found: dict[str, Any], rounds: int, small: bool) -> None:
    for shape in [(2, 2, 48, 64)] if small else [(16, 12, 1024, 64), (8, 16, 4096, 128)]:
        attend(found, rounds, *shape)


def attend(found: dict[str, Any], rounds: int, b: int, h: int, s: int, d: int) -> None:
    mine, theirs = zip(*(numbers(b, s, h, d) for _ in range(4)), strict=True)
    q, k, v, grad = (x.transpose(1, 2) for x in theirs)
    for x in (q, k, v):
        x.requires_grad_(True)
    out, sums = backend.empty((b, s, h, d), bfloat16), backend.empty((b, h, s))
    grads = [backend.empty((b, s, h, d), bfloat16) for _ in range(3)]
    scale = d**-0.5

    def forward() -> None:
        kernels.attention_forward(*mine[:3], True, scale, out, sums)

    def backward() -> None:
        kernels.attention_backward(mine[3], *mine[:3], out, sums, True, scale, *grads)

    def their_forward() -> torch.Tensor:
        result: torch.Tensor = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True
        )
        return result

    forward()
    backward()
    kept = their_forward()
    near(out, kept.detach().transpose(1, 2), 2e-2)
    expected = torch.autograd.grad(kept, (q, k, v), grad, retain_graph=True)
    for ours, other in zip(grads, expected, strict=True):
        near(ours, other.transpose(1, 2), 3e-2)
    text, work = f"attention {b} x {h} x {s} x {d} causal", 2e-12 * b * h * s * s * d

    def without_graph() -> None:
        with torch.no_grad():
            their_forward()

    sides: dict[str, Call] = {"plait": forward, "PyTorch": without_graph}
    report(f"{text}, forward", sides, rounds, found, work, "TFLOP/s")

    def their_backward(deterministic: bool) -> None:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.autograd.grad(kept, (q, k, v), grad, retain_graph=True)
        torch.use_deterministic_algorithms(False)

    sides = {
        "plait": backward,
        "PyTorch": lambda: their_backward(False),
        "deterministic": lambda: their_backward(True),
    }
    report(f"{text}, backward", sides, rounds, found, 2.5 * work, "TFLOP/s")


# --- bound by memory ------------------------------------------------------------------------------


def memory(found: dict[str, Any], rounds: int, small: bool) -> None:
    rows, width, vocabulary = (40, 64, 100) if small else (65536, 768, 50304)
    x, their_x = numbers(rows, width)
    y, their_y = numbers(rows, width)
    grad, _ = numbers(rows, width)
    weight, bias = numbers(width)[0], numbers(width)[0]
    out, stream = (backend.empty((rows, width), bfloat16) for _ in range(2))
    mean, rstd = map(backend.empty, (rows, rows))
    large = torch.empty((1 << 16) if small else (1 << 31), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(large)
    copy = turns({"copy": lambda: target.copy_(large)}, rounds)["copy"]
    bandwidth = 2e-9 * large.numel() / statistics.median(copy)
    found["copy"] = {"seconds": copy, "GB/s": bandwidth}
    print(f"{'copy':44}  {bandwidth:7.1f} GB/s read and written", flush=True)
    norm = torch.nn.LayerNorm(width, device=DEVICE, dtype=torch.bfloat16)

    def against_copy(what: str, sides: dict[str, Call], gigabytes: float) -> None:
        report(what, sides, rounds, found, gigabytes, "GB/s")
        rate = gigabytes / statistics.median(found[what]["seconds"]["plait"])
        found[what]["of a copy"] = rate / bandwidth
        print(f"{'':44}  {rate / bandwidth:.0%} of a copy's bandwidth", flush=True)

    one = 2e-9 * rows * width
    args = (x, None, weight, bias, 1e-5, None, out, mean, rstd)
    both = (x, y, weight, bias, 1e-5, stream, out, mean, rstd)
    with torch.no_grad():
        against_copy(
            f"layer norm {rows} x {width}",
            {"plait": lambda: kernels.layer_norm_forward(*args), "PyTorch": lambda: norm(their_x)},
            2 * one,
        )

        def apart() -> None:
            kernels.add([x, y], stream)
            kernels.layer_norm_forward(stream, None, *both[2:5], None, *both[6:])

        against_copy(
            "layer norm + residual",
            {
                "plait": lambda: kernels.layer_norm_forward(*both),
                "two ops": apart,
                "PyTorch": lambda: norm(their_x + their_y),
            },
            4 * one,
        )
    back = (x, weight, mean, rstd)
    against_copy(
        "layer norm backward",
        {"plait": lambda: kernels.layer_norm_backward(grad, None, *back, out)},
        3 * one,
    )

    def apart_backward() -> None:
        kernels.layer_norm_backward(grad, None, *back, out)
        kernels.add([y, out], stream)

    against_copy(
        "layer norm + residual backward",
        {
            "plait": lambda: kernels.layer_norm_backward(grad, y, *back, out),
            "two ops": apart_backward,
        },
        4 * one,
    )
    sums = backend.empty(width), backend.empty(width)
    length = 8 if small else 1024
    shaped = [a.reshape(rows // length, length, width) for a in (grad, x)]
    stats = [a.reshape(rows // length, length) for a in (mean, rstd)]
    against_copy(
        "layer norm's weights' gradients",
        {"plait": lambda: kernels.layer_norm_backward_weight(*shaped, *stats, False, *sums)},
        2 * one,
    )
    against_copy("GELU", {"plait": lambda: kernels.gelu_forward(x, out)}, 2 * one)
    against_copy("residual add", {"plait": lambda: kernels.add([x, grad], out)}, 3 * one)
    cross_entropy(against_copy, 64 if small else 8192, vocabulary)
    adamw(against_copy, (1 << 12) if small else (1 << 27))


def cross_entropy(against_copy: Any, rows: int, vocabulary: int) -> None:
    logits, their_logits = numbers(rows, vocabulary)
    targets = np.random.default_rng(0).integers(0, vocabulary, rows).astype(np.int32)
    mine, theirs = to_device(targets), torch.from_numpy(targets).long().to(DEVICE)
    stats, target = backend.zeros((2, rows)), backend.zeros(rows)
    gradient = backend.empty(logits.shape, bfloat16)  # in training it takes the logits' place
    their_logits.requires_grad_(True)

    def both() -> None:
        kernels.cross_entropy_statistics(logits, mine, 0, vocabulary, stats[0], stats[1], target)
        kernels.cross_entropy_backward(
            logits, mine, stats[0], stats[1], 0, vocabulary, 1 / rows, gradient
        )

    def their_both() -> None:
        their_logits.grad = None
        torch.nn.functional.cross_entropy(their_logits, theirs).backward()

    sides = {"plait": both, "PyTorch": their_both}
    against_copy(f"cross-entropy {rows} x {vocabulary}", sides, 6e-9 * rows * vocabulary)
    index = backend.empty(rows, np.int32)
    sides = {
        "plait": lambda: kernels.argmax(logits, vocabulary, target, index),
        "PyTorch": lambda: their_logits.detach().argmax(-1),
    }
    against_copy(f"argmax {rows} x {vocabulary}", sides, 2e-9 * rows * vocabulary)


def adamw(against_copy: Any, n: int) -> None:
    master, first, second, grad = (numbers(n, dtype=float32)[0] for _ in range(4))
    kernels.relu_forward(second, second)
    weight = backend.empty(n, bfloat16)
    settings = (1.0, 1e-4, 0.9, 0.95, 1e-8, 0.1, 3)
    ours = {"plait": lambda: kernels.adamw(grad, *settings, master, first, second, weight)}
    against_copy(f"AdamW {n}", ours, 30e-9 * n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="matmul,attention,memory")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--small", action="store_true")
    a = parser.parse_args()
    device = backend.use("cuda")
    if CUDA:  # both sides, and the events, on one stream
        torch.cuda.set_stream(torch.cuda.ExternalStream(backend.stream()))
    print(f"{device}, PyTorch {torch.__version__}", flush=True)
    found: dict[str, Any] = {"device": device, "torch": torch.__version__, "rows": {}}
    parts = {"matmul": matmul, "attention": attention, "memory": memory}
    try:
        for name in a.only.split(","):
            parts[name](found["rows"], a.rounds, a.small)
    finally:
        if a.json:
            a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
