"""bfloat16 matrix products in PyTorch, for benchmarks/matmul.py to take turns with.

python torch_matmul.py M K N KIND: out (M, N) of a (M, K) b (K, N); NT has b stored as (N, K), TN a
as (K, M)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from turns import serve


def main() -> None:
    import torch

    m, k, n = map(int, sys.argv[1:4])
    kind = sys.argv[4]
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn((k, m) if kind == "TN" else (m, k), generator=generator).bfloat16()
    b = torch.randn((n, k) if kind == "NT" else (k, n), generator=generator).bfloat16()
    a, b = a.T if kind == "TN" else a, b.T if kind == "NT" else b
    out = torch.empty(m, n, dtype=torch.bfloat16)
    calls = max(1, round(4e9 / (2 * m * k * n)))

    def step() -> None:
        for _ in range(calls):
            torch.mm(a, b, out=out)

    serve(0, step, lambda: {"calls": calls})


if __name__ == "__main__":
    main()
