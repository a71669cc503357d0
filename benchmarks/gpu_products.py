"""Products whose rows belong to several ranks, multiplied and communicated by one kernel, against
the product alone and against separate kernels; ranks are streams of one process on one GPU.

python benchmarks/gpu_products.py [--ranks 2] [--rounds 20] [--json F] [--small]

What communication adds to the product alone is what is exposed of it. Links are no part of it:
peers' memory is this GPU's, and every rank has its share of the multiprocessors.
--small: sizes that only show that everything runs, on any device or on none.
"""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from typing import Any

import numpy as np
from gpu_collectives import Ranks, as_host, started, turns
from turns import ratio_text

from plait.backend import bfloat16, float32, kernels
from plait.comm.tree import Leaves


def randoms(ranks: Ranks, rank: int, shape: tuple[int, int], seed: int) -> Any:
    x = np.random.default_rng([seed, rank]).standard_normal(shape, np.float32)
    there = ranks.empty(rank, shape, bfloat16)
    there.view(np.uint16)[...] = ranks.xp.asarray(x.astype(bfloat16).view(np.uint16))
    return there


def product(
    ranks: Ranks, kind: str, m: int, k: int, n: int, rounds: int, junk: Any
) -> dict[str, Any]:
    """kind: "matmul_reduce_scatter": k is cut over ranks, or "all_gather_matmul": n is."""
    size, sums = ranks.size, kind == "matmul_reduce_scatter"
    marks = list(ranks.used)
    bounds = [m * r // size for r in range(size + 1)]
    own_k, own_n = (k // size, n) if sums else (k, n // size)
    merges = Leaves.even(size, size).merges()
    xs, ws, outs, places = [], [], [], []
    for rank in range(size):
        rows = bounds[rank + 1] - bounds[rank]
        xs.append(randoms(ranks, rank, (m if sums else rows, own_k), 1))
        ws.append(randoms(ranks, rank, (own_k, own_n), 2))
        outs.append(ranks.empty(rank, (rows if sums else m, own_n), bfloat16))
        places.append(
            ranks.empty(rank, (size, rows, n), float32)
            if sums
            else ranks.empty(rank, (m, k), bfloat16)
        )
    spec = kernels.ProductSpec(
        bounds, [0, own_k], merges, [ranks.offset(r, p) for r, p in enumerate(places)], [],
        kernels.wgmma_available(),
    )  # fmt: skip
    fused, moves, alone = [], [], []
    for rank, window in enumerate(ranks.windows):
        x, w, out = xs[rank], ws[rank], outs[rank]
        if sums:
            fused.append(window.matmul_reduce(x, w, spec, False, out))
            whole = ranks.empty(rank, (1, m * n), float32)
            cut = kernels.ReduceSpec([1] * size, merges, [b * n for b in bounds], 1, "sum", False)
            moves.append(window.reduction(whole, cut, None, out.reshape(1, -1)))
            alone.append((x, w, whole.reshape(m, n)))
        else:
            fused.append(window.all_gather_matmul(x, w, spec, out))
            lengths = [2 * k * (b - a) for a, b in pairwise(bounds)]
            whole = ranks.empty(rank, (m, k), bfloat16)
            flat = [a.view(np.uint8).reshape(-1) for a in (x, whole)]
            moves.append(window.all_gather(flat[0], lengths, flat[1]))
            alone.append((whole, w, out))

    def multiply(rank: int) -> None:
        x, w, out = alone[rank]
        kernels.matmul(x, w, False, False, [0, own_k], False, 0, None, out)

    def one(rank: int) -> None:
        for call in fused[rank]:
            ranks.windows[rank].launch(call, 0)

    def two(rank: int) -> None:
        if sums:
            multiply(rank)
        ranks.windows[rank].launch(moves[rank], 0)
        if not sums:
            multiply(rank)

    found = []
    for work in (one, two):
        ranks.each(work)
        found.append([as_host(ranks.xp, out).tobytes() for out in outs])
    assert found[0] == found[1], "one kernel's bits differ"
    times = turns(
        {name: lambda w=w: ranks.seconds(w, junk) for name, w in  # type: ignore[misc]
         (("fused", one), ("separate", two), ("product alone", multiply))},
        rounds,
    )  # fmt: skip
    middle = {name: statistics.median(x) for name, x in times.items()}
    row = {
        "kind": kind, "m": m, "k": k, "n": n, "seconds": times,
        "exposed": middle["fused"] / middle["product alone"] - 1,
        "fused / separate": ratio_text(times["fused"], times["separate"]),
        "TFLOP/s": 2e-12 * m * k * n / middle["fused"],
    }  # fmt: skip
    print(
        f"{kind} {m} x {k} x {n}: {1e6 * middle['fused']:9.1f} us, {row['exposed']:.1%} exposed, "
        f"{row['TFLOP/s']:.0f} TFLOP/s; separate: {row['fused / separate']}",
        flush=True,
    )
    ranks.used[:] = marks
    return row


def main() -> None:
    a, ranks, junk, found = started(__doc__, 2 << 30)
    found["rows"] = []
    shapes = [(130, 64, 32)] if a.small else [
        (2048, 4096, 4096), (8192, 4096, 4096), (8192, 4096, 16384), (8192, 768, 3072),
    ]  # fmt: skip
    try:
        for shape in shapes:
            for kind in ("matmul_reduce_scatter", "all_gather_matmul"):
                found["rows"].append(product(ranks, kind, *shape, a.rounds, junk))
        ranks.close()
    finally:
        if a.json:
            a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
