"""A small neural operator on a globe for the plan beside this file."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LocalFilter(nn.Module):
    """A convolution on the globe: longitudes go round, rows beyond the poles repeat the outermost."""

    def __init__(self, channels: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.filter = nn.Conv2d(channels, outputs, 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, latitudes, longitudes) to the same or to half of each."""
        circled = torch.cat([x[..., -1:], x, x[..., :1]], 3)
        result: Tensor = self.filter(F.pad(circled, (0, 0, 1, 1), mode="replicate"))
        return result


class SpectralFilter(nn.Module):
    """A filter of waves: products with matrices go to waves and come back; between them channels are mixed."""

    def __init__(self, channels: int, latitudes: int, longitudes: int, waves: int) -> None:
        super().__init__()
        angles = 2 * math.pi * torch.outer(torch.arange(longitudes), torch.arange(waves)) / longitudes
        colatitudes = math.pi * (torch.arange(latitudes) + 0.5) / latitudes
        self.register_buffer("circles", torch.cat([angles.cos(), angles.sin()], 1))
        self.register_buffer("meridians", torch.outer(colatitudes, torch.arange(waves)).cos() * (2 / latitudes))
        self.mix = nn.Parameter(torch.randn(waves, channels, channels) / channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, latitudes, longitudes) to the same."""
        along = x @ self.circles  # waves along each circle of latitude
        waves = torch.einsum("bchm,hl->bclm", along, self.meridians)
        mixed = torch.einsum("bclm,lcd->bdlm", waves, self.mix)
        return torch.einsum("bdlm,hl->bdhm", mixed, self.meridians) @ self.circles.T


class Block(nn.Module):
    """One filter, and a perceptron for each point."""

    def __init__(self, filter: nn.Module, channels: int) -> None:
        super().__init__()
        self.filter = filter
        self.norm = nn.GroupNorm(2, channels)
        self.widen, self.narrow = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The state with what the block adds."""
        result: Tensor = x + self.narrow(F.gelu(self.widen(self.norm(self.filter(x)))))
        return result


class Forecast(nn.Module):
    """The weather in six hours: an encoder to a coarser grid, local and spectral blocks, a decoder back."""

    def __init__(self, variables: int = 3, channels: int = 8, latitudes: int = 12, longitudes: int = 16) -> None:
        super().__init__()
        self.encoder = LocalFilter(variables, channels, stride=2)
        self.local = Block(LocalFilter(channels, channels), channels)
        self.spectral = Block(SpectralFilter(channels, latitudes // 2, longitudes // 2, 4), channels)
        self.decoder = LocalFilter(channels, variables)

    def forward(self, state: Tensor, target: Tensor) -> Tensor:
        """The mean square error of the forecast."""
        x = self.spectral(self.local(self.encoder(state)))
        fine = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        return F.mse_loss(state + self.decoder(fine), target)


def model() -> tuple[nn.Module, dict[str, Any]]:
    """Four states of three variables on 12 by 16 points."""
    state, target = torch.randn(2, 4, 3, 12, 16)
    return Forecast(), {"state": state, "target": target}
