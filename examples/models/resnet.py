"""A residual network with batch normalisation, in plain PyTorch.

stretto compile examples/models/resnet.py:resnet --plan examples/plans/resnet/dp.plan -o program
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, (batch, inputs, h, w) to (batch, outputs, h/stride, w/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """The block's residual added to `x`."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += x if self.shortcut is None else self.shortcut(x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """Images (batch, 3, h, w) to class scores, or with labels (batch) to the mean cross-entropy (nats an image)."""

    def __init__(self, widths: tuple[int, ...] = (8, 16), blocks: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        pairs = zip((widths[0], *widths), widths, strict=False)
        self.stages = nn.ModuleList(
            nn.Sequential(
                Block(inputs, outputs, 1 if index == 0 else 2), *(Block(outputs, outputs, 1) for _ in range(blocks - 1))
            )
            for index, (inputs, outputs) in enumerate(pairs)
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scores, or the loss."""
        x = F.max_pool2d(F.relu(self.norm(self.stem(images)), inplace=True), 3, 2, 1)
        for stage in self.stages:
            x = stage(x)
        scores: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores if labels is None else F.cross_entropy(scores, labels)


def resnet() -> tuple[nn.Module, dict[str, Any]]:
    """A small one with a batch of four images of 16 by 16."""
    return ResNet(), {"images": torch.randn(4, 3, 16, 16), "labels": torch.randint(0, 10, (4,))}
