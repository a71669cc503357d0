"""A training step of the same model in PyTorch, for benchmarks/step.py to take turns with.

python torch_step.py MODEL RANKS PRECISION FORM [compile]: precision "autocast", or "masters"
(bfloat16 weights with float32 masters, kept beside them). FORM of a GPT, whose head is tied: "whole
loss", or "chunks loss" (head and loss 256 rows at a time, computed again in backward); of a ViT
what it classifies by: the "mean" over positions as plait's, or a "class token". A ResNet's images
are channels_last. Several ranks are DistributedDataParallel over gloo.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sizes import BATCH, GPT, RESNET, VIT, VOCABULARY, positions
from torch_ranks import start
from torch_resnet import build_resnet
from turns import serve


def block(torch: Any, width: int, heads: int, causal: bool) -> Any:
    nn, F = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            b, s, _ = x.shape
            q, k, v = (  # of this rank's heads, if there are several
                t.view(b, s, -1, width // heads).transpose(1, 2)
                for t in self.qkv(self.norm1(x)).chunk(3, 2)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
            x = x + self.out(y.transpose(1, 2).reshape(b, s, -1))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    return Block()


def initialize(torch: Any, model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.zeros_(module.bias)


def build_vit(torch: Any, sizes: dict[str, Any], positions: int, token: bool) -> Any:
    nn, F = torch.nn, torch.nn.functional
    width, patch, channels = sizes["hidden_dim"], sizes["patch"], sizes["input_shape"][2]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(channels, width, patch, patch)
            self.token = nn.Parameter(torch.zeros(1, 1, width)) if token else None
            self.positions = nn.Parameter(torch.randn(1, positions + token, width) * 0.02)
            self.blocks = nn.ModuleList(
                block(torch, width, sizes["heads"], False) for _ in range(sizes["layers"])
            )
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, sizes["classes"])
            initialize(torch, self)

        def forward(self, inputs, targets):
            x = self.patches(inputs.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)
            if token:
                x = torch.cat([self.token.expand(len(x), -1, -1).to(x.dtype), x], 1)
            x = x + self.positions
            for each in self.blocks:
                x = each(x)
            x = self.norm(x)
            return F.cross_entropy(self.head(x[:, 0] if token else x.mean(1)).float(), targets)

    return Model()


def build_gpt(torch: Any, sizes: dict[str, int], chunks: bool) -> Any:
    nn, F = torch.nn, torch.nn.functional
    width, heads = sizes["hidden_dim"], sizes["heads"]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(VOCABULARY, width)
            self.positions = nn.Embedding(sizes["sequence_length"], width)
            self.blocks = nn.ModuleList(
                block(torch, width, heads, True) for _ in range(sizes["layers"])
            )
            self.norm = nn.LayerNorm(width)
            initialize(torch, self)

        def head(self, x):
            return F.linear(x, self.tokens.weight)

        def _loss(self, x, targets):
            logits = self.head(x)
            return F.cross_entropy(logits.float(), targets, reduction="sum")

        def forward(self, inputs, targets):
            x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
            for each in self.blocks:
                x = each(x)
            x, targets = self.norm(x).flatten(0, 1), targets.flatten()
            if not chunks:
                return self._loss(x, targets) / len(targets)
            from torch.utils.checkpoint import checkpoint

            parts = zip(x.split(256), targets.split(256), strict=True)
            total = sum(checkpoint(self._loss, *part, use_reentrant=False) for part in parts)
            return total / len(targets)

    return Model()


def updates(torch: Any, parameters: list[Any], precision: str) -> Callable[[], None]:
    """What updates them by their gradients, each rank's own part of those that are cut."""
    own = [p.to_local() if hasattr(p, "to_local") else p for p in parameters]
    masters = [p.detach().float().requires_grad_() for p in own]  # the weights, if float32
    optimizer = torch.optim.AdamW(masters, 3e-4, weight_decay=0.1, fused=True)

    def update() -> None:
        for master, p in zip(masters, parameters, strict=True):
            grad = p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad
            master.grad = grad.float()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if precision == "masters":
            with torch.no_grad():
                torch._foreach_copy_([p.detach() for p in own], masters)

    return update


def work(rank: int, model: str, ranks: int, precision: str, form: str, compiled: bool) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if model in VIT:
        net = build_vit(torch, VIT[model], positions(model), form == "class token")
    elif model in RESNET:
        net = build_resnet(torch, RESNET[model]).to(memory_format=torch.channels_last)
    else:
        net = build_gpt(torch, GPT[model], form == "chunks loss")
    if precision == "masters":
        net = net.bfloat16()
    update = updates(torch, list(net.parameters()), precision)
    call = net
    if ranks > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
        call = torch.nn.parallel.DistributedDataParallel(net)
    if compiled:
        call = torch.compile(call)
    generator = torch.Generator().manual_seed(rank)
    batch = BATCH[model]
    if model in VIT or model in RESNET:
        about = {**VIT, **RESNET}[model]
        height, width, channels = about["input_shape"]
        inputs = torch.randn((batch, channels, height, width), generator=generator)
        if model in RESNET:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        targets = torch.randint(0, about["classes"], (batch,), generator=generator)
    else:
        tokens = torch.randint(0, VOCABULARY, (batch, positions(model) + 1), generator=generator)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> None:
        net.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            value = call(inputs, targets)
        value.backward()
        update()
        value.item()
        if ranks > 1:
            torch.distributed.barrier()

    serve(rank, step, lambda: {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10})


def main() -> None:
    model, ranks, precision, form, *rest = sys.argv[1:]
    start(work, int(ranks), model, int(ranks), precision, form, "compile" in rest)


if __name__ == "__main__":
    main()
