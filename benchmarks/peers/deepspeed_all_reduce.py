"""DeepSpeed's all-reduce over shared memory (inference_all_reduce_), for benchmarks/collectives.py.

python deepspeed_all_reduce.py RANKS, with torch and an installed deepspeed (`pip install --no-deps
deepspeed ninja`), whose source is compiled on the first run.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from collectives import SIZES, measure, pin, reps, slowest
from torch_ranks import start
from turns import serve


def work(rank: int, ranks: int) -> None:
    import torch
    from torch import distributed
    from torch.utils import cpp_extension

    pin(rank)
    torch.set_num_threads(1)
    os.environ.update(LOCAL_SIZE=str(ranks))
    distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "ops/csrc/cpu"
    library: Any = None
    for turn in range(ranks):  # the first compiles it
        if turn == rank:
            library = cpp_extension.load(
                "plait_benchmark_shm",
                [str(source / "comm/shm_interface.cpp"), str(source / "comm/shm.cpp")],
                extra_include_paths=[str(source / "includes")],
                extra_cflags=["-O2", "-fopenmp"],
            )
        distributed.barrier()
    library.initialize(ranks, rank)
    all_reduce = torch.ops.deepspeed.inference_all_reduce_
    word = torch.zeros(1)
    arrays = {size: torch.empty(size // 4) for size in SIZES}
    found: dict[str, float] = {}

    class Filled:
        def __init__(self, x: Any):
            self.fill = x.fill_

    def gathered(times: list[float]) -> list[Any]:
        every: list[Any] = [None] * ranks
        distributed.all_gather_object(every, times)
        return every

    def step() -> None:
        for size, x in arrays.items():
            times = measure(
                Filled(x), partial(all_reduce, x), partial(all_reduce, word), reps(size)
            )
            found[f"any {size}"] = slowest(gathered, times)

    serve(rank, step, lambda: {"us": found})


def main() -> None:
    ranks = int(sys.argv[1])
    start(work, ranks, ranks)


if __name__ == "__main__":
    main()
