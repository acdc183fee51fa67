"""A UNet as diffusion models have it, in plain PyTorch: convolutions, group norms, skips, attention at the bottom.

stretto compile examples/models/unet.py:unet --plan examples/plans/unet/dp.plan -o program
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two convolutions, shifted by the time between them; (batch, inputs, h, w) to (batch, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(embedding, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x` with the residual added; `time` is (batch, embedding)."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class SpatialAttention(nn.Module):
    """Self-attention over all positions of an image, (batch, channels, h, w) to the same."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` with the mixed values added."""
        batch, channels, height, width = x.shape
        shape = (batch, self.heads, channels // self.heads, height * width)
        q, k, v = (part.reshape(shape).transpose(2, 3) for part in self.qkv(self.norm(x)).chunk(3, 1))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(2, 3).reshape(batch, channels, height, width))


class UNet(nn.Module):
    """Noisy images (batch, 3, h, w) at times (batch) to the noise, or with the noise given to the mean square error."""

    def __init__(self, widths: tuple[int, ...] = (8, 16), heads: int = 2, groups: int = 4) -> None:
        super().__init__()
        embedding = 4 * widths[0]
        self.frequencies = widths[0] // 2
        self.time = nn.Sequential(nn.Linear(widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            ResidualBlock(a, b, embedding, groups) for a, b in zip((widths[0], *widths), widths, strict=False)
        )
        self.shrink = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = SpatialAttention(widths[-1], heads, groups)
        self.up = nn.ModuleList(
            ResidualBlock(a + b, b, embedding, groups)
            for a, b in zip((widths[-1], *reversed(widths)), reversed(widths), strict=False)
        )
        self.grow = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in reversed(widths[1:]))
        self.norm = nn.GroupNorm(groups, widths[0])
        self.head = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, images: Tensor, times: Tensor, noise: Tensor | None = None) -> Tensor:
        """The predicted noise, or its loss."""
        time = self.time(_waves(times, self.frequencies))
        x = self.stem(images)
        skips = []
        for level, block in enumerate(self.down):
            x = block(x, time)
            skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        x = self.middle(x)
        for level, block in enumerate(self.up):
            x = block(torch.cat([x, skips.pop()], 1), time)
            if level < len(self.grow):
                x = self.grow[level](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        output: Tensor = self.head(F.silu(self.norm(x)))
        return output if noise is None else F.mse_loss(output, noise)


def _waves(times: Tensor, frequencies: int) -> Tensor:
    """Sines and cosines of the times (batch), (batch, 2 * frequencies)."""
    rates = torch.exp(torch.arange(frequencies, device=times.device) * (-math.log(1e4) / frequencies))
    angles = times[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def unet() -> tuple[nn.Module, dict[str, Any]]:
    """A small one with a batch of four images of 8 by 8."""
    images, noise = torch.randn(2, 4, 3, 8, 8)
    return UNet(), {"images": images, "times": torch.rand(4), "noise": noise}
