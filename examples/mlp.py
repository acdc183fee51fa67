"""A stack of residual MLPs in plain PyTorch: the smallest model with layers, for plans that do not care which."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Config:
    """Sizes of an `MLP`."""

    width: int = 8
    layers: int = 4


class Layer(nn.Module):
    """x + down(relu(up(x))), (batch, width) to the same."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.width, 2 * config.width)
        self.down_proj = nn.Linear(2 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Each row by itself."""
        return x + self.down_proj(F.relu(self.up_proj(x)))


class MLP(nn.Module):
    """Rows and what they should become, both (batch, width), to the mean squared error."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.head = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, wanted: Tensor) -> Tensor:
        """The loss."""
        for layer in self.layers:
            x = layer(x)
        return F.mse_loss(self.head(x), wanted)
