"""A training step of GPT in PyTorch at a layout of two ranks, for benchmarks/layouts.py to take
turns with.

python torch_layouts.py MODEL MODE PRECISION BATCH MICROBATCHES FIRST

MODE: single (one rank), ddp, fsdp (fully_shard), tp (DTensor: column and row parallel blocks,
vocabulary-parallel embedding, head and loss) or pp (1F1B of torch.distributed.pipelining,
MICROBATCHES of BATCH, the first FIRST blocks on the first stage). BATCH is of a replica. PRECISION:
"autocast", or "masters" (bfloat16 weights with float32 masters; for fsdp its own mixed precision).
The model is torch_step.py's, with a tied head, but for pp, whose stages cannot share a weight. The
fused AdamW updates each rank's own part.
"""

from __future__ import annotations

import resource
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sizes import GPT, VOCABULARY, positions
from torch_ranks import start
from torch_step import build_gpt, updates
from turns import serve


def shard(torch: Any, net: Any, precision: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh, more = init_device_mesh("cpu", (2,)), {}
    if precision == "masters":
        more["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for part in (*net.blocks, net):
        fully_shard(part, mesh=mesh, **more)


def split(torch: Any, net: Any) -> None:
    """qkv's rows are cut in two as they lie: the same model with its heads in another order."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )  # fmt: skip

    mesh = init_device_mesh("cpu", (2,))
    for block in net.blocks:
        column, row = ("qkv", "up"), ("out", "down")
        plan = {name: ColwiseParallel() for name in column}
        parallelize_module(block, mesh, plan | {name: RowwiseParallel() for name in row})
    parallelize_module(net, mesh, {"tokens": RowwiseParallel(input_layouts=Replicate())})

    def head(x: Any) -> Any:
        x = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
        return torch.nn.functional.linear(x, net.tokens.weight)  # split by words

    net.head = head


def stage(torch: Any, net: Any, rank: int, first: int, autocast: bool) -> Any:
    nn, sizes = torch.nn, (net.tokens.weight.shape[1], VOCABULARY)

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            if rank == 0:
                self.tokens, self.positions = net.tokens, net.positions
                self.blocks = net.blocks[:first]
            else:
                self.blocks, self.norm = net.blocks[first:], net.norm
                self.head = nn.Linear(*sizes, bias=False)
                nn.init.normal_(self.head.weight, std=0.02)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                if rank == 0:
                    x = self.tokens(x) + self.positions.weight[: x.shape[1]]
                for block in self.blocks:
                    x = block(x)
                return x if rank == 0 else self.head(self.norm(x))

    return Stage()


def work(
    rank: int, model: str, mode: str, precision: str, batch: int, microbatches: int, first: int
) -> None:
    import torch

    F = torch.nn.functional
    torch.set_num_threads(1)
    torch.manual_seed(0)
    autocast = precision == "autocast"
    if mode != "single":
        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    net = build_gpt(torch, GPT[model], False)
    if mode == "pp":
        net = stage(torch, net, rank, first, autocast)
    if precision == "masters" and mode != "fsdp":
        net = net.bfloat16()
    call, context = net, nullcontext
    if mode == "ddp":
        call = torch.nn.parallel.DistributedDataParallel(net)
    elif mode == "fsdp":
        shard(torch, net, precision)
    elif mode == "tp":
        from torch.distributed.tensor.parallel import loss_parallel

        split(torch, net)
        context = loss_parallel
    update = updates(torch, list(net.parameters()), precision if mode != "fsdp" else "autocast")
    generator = torch.Generator().manual_seed(rank if mode in ("ddp", "fsdp") else 0)
    tokens = torch.randint(0, VOCABULARY, (batch, positions(model) + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    schedule: Any = None
    if mode == "pp":
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B

        def loss(logits: Any, targets: Any) -> Any:
            return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

        place = PipelineStage(net, rank, 2, torch.device("cpu"))
        schedule = Schedule1F1B(place, microbatches, loss_fn=loss)

    def step() -> None:
        net.zero_grad(set_to_none=True)
        if schedule is not None:
            losses: list[Any] = []
            schedule.step(*([inputs] if rank == 0 else []), **(
                {} if rank == 0 else {"target": targets, "losses": losses}
            ))  # fmt: skip
            update()
            sum(loss.item() for loss in losses)
        else:
            with context():
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    value = call(inputs, targets)
                value.backward()
            update()
            value.item()
        if mode != "single":
            torch.distributed.barrier()

    def about() -> dict[str, Any]:
        peak = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10]
        if mode != "single":
            peak = [0, 0]
            torch.distributed.all_gather_object(
                peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            )
        return {"memory": max(peak)}

    serve(rank, step, about)


def main() -> None:
    model, mode, precision, *numbers = sys.argv[1:]
    start(work, 1 if mode == "single" else 2, model, mode, precision, *map(int, numbers))


if __name__ == "__main__":
    main()
