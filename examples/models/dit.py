"""A diffusion transformer (DiT) with adaptive layer norms, in plain PyTorch.

stretto compile examples/models/dit.py:dit --plan examples/plans/dit/tp.plan -o program

Source: Peebles and Xie, "Scalable diffusion models with transformers" (arXiv:2212.09748), the adaLN-Zero block.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention over patches, (batch, patches, hidden) to the same; one projection makes q, k and v."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Mix every patch with all others."""
        batch, patches, hidden = x.shape
        q, k, v = self.qkv(x).reshape(batch, patches, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, patches, hidden))


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (batch, hidden)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden, elementwise_affine=False)
        self.attention = Attention(hidden, heads)
        self.norm2 = nn.LayerNorm(hidden, elementwise_affine=False)
        self.fc1 = nn.Linear(hidden, 4 * hidden)
        self.fc2 = nn.Linear(4 * hidden, hidden)
        self.modulation = nn.Linear(hidden, 6 * hidden)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(batch, patches, hidden) to the same."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, -1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        y = F.gelu(self.fc1(self.norm2(x) * (1 + scale2) + shift2), approximate="tanh")
        return x + gate2 * self.fc2(y)


class DiT(nn.Module):
    """Noisy latents (batch, channels, h, w), times (batch) and classes (batch) to the noise, or to its loss."""

    def __init__(
        self, *, hidden: int = 32, heads: int = 4, layers: int = 2, patch: int = 2, size: int = 8, classes: int = 10
    ) -> None:
        super().__init__()
        self.patch, self.channels, self.hidden = patch, 4, hidden
        self.embed = nn.Conv2d(self.channels, hidden, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, hidden))
        self.time = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.label = nn.Embedding(classes, hidden)
        self.layers = nn.ModuleList(Block(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulation = nn.Linear(hidden, 2 * hidden)
        self.head = nn.Linear(hidden, patch * patch * self.channels)

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The predicted noise, or the mean square error of it."""
        x = self.embed(latents).flatten(2).transpose(1, 2) + self.positions
        condition = self.time(self._waves(times)) + self.label(labels)
        for layer in self.layers:
            x = layer(x, condition)
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, -1)
        image = self._image(self.head(self.norm(x) * (1 + scale) + shift), latents.shape[-1] // self.patch)
        return image if noise is None else F.mse_loss(image, noise)

    def _waves(self, times: Tensor) -> Tensor:
        """Cosines and sines of the times, (batch, hidden)."""
        half = self.hidden // 2
        rates = torch.exp(torch.arange(half, device=times.device) * (-math.log(1e4) / half))
        angles = times[:, None] * rates
        return torch.cat([angles.cos(), angles.sin()], -1)

    def _image(self, patches: Tensor, side: int) -> Tensor:
        """(batch, side * side, patch * patch * channels) to (batch, channels, side * patch, side * patch)."""
        x = patches.reshape(-1, side, side, self.patch, self.patch, self.channels)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, self.channels, side * self.patch, side * self.patch)


def dit() -> tuple[nn.Module, dict[str, Any]]:
    """A small one with a batch of four latents of 8 by 8."""
    latents, noise = torch.randn(2, 4, 4, 8, 8)
    return DiT(), {"latents": latents, "times": torch.rand(4), "labels": torch.randint(0, 10, (4,)), "noise": noise}
