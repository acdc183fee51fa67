"""Modules of torch and of libraries whose forward has state in properties, asks about the mode, or has hooks."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import stretto
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, kl_divergence
from torch.nn import functional as F

DP, DP_TP = "mesh (dp=2)", "mesh (dp=2, tp=2)\n"


def train_alike(model: nn.Module, plan: str, *inputs: Tensor, steps: int = 2) -> None:
    """Losses, parameters and buffers of a compiled copy are those of the model itself, to 1e-9."""
    model = model.double()
    compiled = stretto.compile(copy.deepcopy(model), plan=plan)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (model, compiled)]
    for _ in range(steps):
        losses = []
        for module, optimizer in zip((model, compiled), optimizers, strict=True):
            loss = module(*inputs)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(compiled.state_dict(), model.state_dict(), rtol=1e-9, atol=1e-12)


class SpectralNorm(nn.Module):
    """Its weight is a property that writes to buffers whenever it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6))
        power: Any = self.layer.parametrizations["weight"][0]  # type: ignore[index]
        for vector in (power._u, power._v):
            vector.copy_(F.normalize(torch.randn_like(vector), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x).pow(2).sum()
        return result


def test_a_property_that_writes_to_buffers_is_read_as_often_as_by_plain_pytorch() -> None:
    torch.manual_seed(0)
    train_alike(SpectralNorm(), DP, torch.randn(4, 8, dtype=torch.float64))


class Masked(nn.Module):
    """Nobody says that the mask is causal; torch would look."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        result: Tensor = self.encoder(x, mask=mask).pow(2).sum()
        return result


def test_a_transformer_finds_out_about_its_mask_without_looking_at_values() -> None:
    torch.manual_seed(0)
    train_alike(Masked(), DP, torch.randn(2, 5, 8, dtype=torch.float64), steps=1)


class Variational(nn.Module):
    """Distributions over the hidden and over the visible."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 8), nn.Linear(4, 6)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        mean, log_variance = self.encode(x).chunk(2, -1)
        hidden = Normal(mean, (0.5 * log_variance).exp())
        visible = Independent(Normal(self.decode(hidden.mean + hidden.stddev * noise), 1.0), 1)
        divergence = kl_divergence(hidden, Normal(0.0, 1.0)).sum(-1)
        result: Tensor = (divergence - visible.log_prob(x)).mean()
        return result


def test_distributions_check_no_values_in_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Distribution, "_validate_args", True)  # torch.compile turns it off for the whole process
    torch.manual_seed(0)
    inputs = (torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64))
    train_alike(Variational(), DP_TP + 'shard "encode" columns over tp', *inputs)
    with pytest.raises(ValueError, match="constraint"):
        Normal(0.0, -1.0)


class Pooled(nn.Module):
    """Global pooling of images whose channels lie last, which torch gives strides of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        images = self.inner(x).permute(0, 3, 1, 2)
        result: Tensor = self.outer(F.adaptive_avg_pool2d(images, 1).flatten(1)).pow(2).sum()
        return result


def test_images_with_channels_last_may_be_pooled() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 5, 3, dtype=torch.float64)
    train_alike(Pooled(), DP_TP + 'shard "inner" columns over tp', x)


class Recording(nn.Module):
    """Registers hooks in its first forward, and notes that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> list[Tensor]:
        seen: list[Tensor] = []
        if not getattr(self, "_installed", False):
            self.layer.register_forward_hook(lambda module, inputs, result: self._seen(result))
            self._installed = True
        self.__dict__["_into"] = seen
        self.layer(x)
        return seen

    def _seen(self, result: Tensor) -> None:
        self.__dict__["_into"].append(result)


def test_hooks_that_a_forward_registers_are_there_once_in_every_program() -> None:
    model = stretto.compile(Recording(), plan=DP)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message='forward sets "_into"')
        for batch in (2, 4, 6):
            assert len(model(torch.randn(batch, 6))) == 1
    assert not model.layer._forward_hooks
