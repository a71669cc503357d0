"""A training step of the same model in PyTorch, for benchmarks/step.py to take turns with.

python torch_step.py MODEL RANKS PRECISION LOSS [compile]: precision "autocast", or "masters"
(bfloat16 weights with float32 masters, kept beside them); loss "whole", or "chunks" (head and loss
256 rows at a time, computed again in backward). The head of a GPT is tied in all of them; images
are channels_last. Several ranks are DistributedDataParallel over gloo.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sizes import BATCH, GPT, RESNET, VOCABULARY
from torch_resnet import build_resnet
from turns import serve


def build(torch: Any, sizes: dict[str, int], chunks: bool) -> Any:
    nn, F = torch.nn, torch.nn.functional
    width, heads = sizes["hidden_dim"], sizes["heads"]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            b, s, c = x.shape
            q, k, v = (
                t.view(b, s, heads, -1).transpose(1, 2)
                for t in self.qkv(self.norm1(x)).split(width, 2)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, s, c))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(VOCABULARY, width)
            self.positions = nn.Embedding(sizes["sequence_length"], width)
            self.blocks = nn.ModuleList(Block() for _ in range(sizes["layers"]))
            self.norm = nn.LayerNorm(width)
            self.apply(self._init)

        @staticmethod
        def _init(module):
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

        def _loss(self, x, targets):
            logits = F.linear(x, self.tokens.weight)
            return F.cross_entropy(logits.float(), targets, reduction="sum")

        def forward(self, inputs, targets):
            x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
            for block in self.blocks:
                x = block(x)
            x, targets = self.norm(x).flatten(0, 1), targets.flatten()
            if not chunks:
                return self._loss(x, targets) / len(targets)
            from torch.utils.checkpoint import checkpoint

            parts = zip(x.split(256), targets.split(256), strict=True)
            total = sum(checkpoint(self._loss, *part, use_reentrant=False) for part in parts)
            return total / len(targets)

    return Model()


def work(
    rank: int, model: str, ranks: int, precision: str, loss: str, compiled: bool, port: int
) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if model in RESNET:
        net = build_resnet(torch, RESNET[model]).to(memory_format=torch.channels_last)
    else:
        net = build(torch, GPT[model], loss == "chunks")
    masters = None
    if precision == "masters":
        net = net.bfloat16()
        masters = [p.detach().float().clone().requires_grad_() for p in net.parameters()]
    optimizer = torch.optim.AdamW(masters or net.parameters(), 3e-4, weight_decay=0.1, fused=True)
    call = net
    if ranks > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
        call = torch.nn.parallel.DistributedDataParallel(net)
    if compiled:
        call = torch.compile(call)
    generator = torch.Generator().manual_seed(rank)
    batch = BATCH[model]
    if model in RESNET:
        height, width, channels = RESNET[model]["input_shape"]
        inputs = torch.randn((batch, channels, height, width), generator=generator)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        targets = torch.randint(0, RESNET[model]["classes"], (batch,), generator=generator)
    else:
        length = GPT[model]["sequence_length"]
        tokens = torch.randint(0, VOCABULARY, (batch, length + 1), generator=generator)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> None:
        net.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            value = call(inputs, targets)
        value.backward()
        if masters is None:
            optimizer.step()
        else:
            for master, p in zip(masters, net.parameters(), strict=True):
                master.grad = p.grad.float()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_copy_(list(net.parameters()), masters)
        value.item()
        if ranks > 1:
            torch.distributed.barrier()

    serve(rank, step, lambda: {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10})


def main() -> None:
    model, ranks, precision, loss, *rest = sys.argv[1:]
    arguments = (model, int(ranks), precision, loss, "compile" in rest)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=work, args=(rank, *arguments, port)) for rank in range(1, int(ranks))
    ]
    for process in others:
        process.start()
    work(0, *arguments, port)
    for process in others:
        process.join()


if __name__ == "__main__":
    main()
