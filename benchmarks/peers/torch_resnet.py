"""plait's models.resnet in PyTorch (He et al. 2016, for small images), of blocks 2, 2, 2, 2."""

from __future__ import annotations

from itertools import pairwise
from typing import Any


def build_resnet(torch: Any, sizes: dict[str, Any], width: int = 64) -> Any:
    nn, F = torch.nn, torch.nn.functional

    def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Any:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs))

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.first = conv_norm(inputs, outputs, 3, stride)
            self.second = conv_norm(outputs, outputs, 3)
            same = stride == 1 and inputs == outputs
            self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride)

        def forward(self, x):
            return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = conv_norm(sizes["input_shape"][2], width, 3)
            widths = [width, width, 2 * width, 4 * width, 8 * width]
            blocks = []
            for group, (inputs, outputs) in enumerate(pairwise(widths)):
                blocks += [Block(inputs, outputs, 2 if group else 1), Block(outputs, outputs, 1)]
            self.blocks = nn.Sequential(*blocks)
            self.head = nn.Linear(widths[-1], sizes["classes"])

        def forward(self, inputs, targets):
            x = F.relu(self.stem(inputs.to(self.head.weight.dtype)))
            x = self.blocks(x).mean((2, 3))
            return F.cross_entropy(self.head(x).float(), targets)

    return Model()
