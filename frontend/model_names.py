"""The names of a model's parameters and buffers: tied ones merged by identity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class NamedTensor:
    """A parameter or buffer under its first name, with all its names."""

    name: str
    aliases: tuple[str, ...]
    tensor: torch.Tensor


def merged_parameters(model: nn.Module) -> tuple[NamedTensor, ...]:
    """The parameters in the order of `named_parameters`, each once."""
    return _merge(model.named_parameters(remove_duplicate=False))


def merged_buffers(model: nn.Module) -> tuple[NamedTensor, ...]:
    """The buffers in the order of `named_buffers`, each once; the same tensor under two names is one buffer."""
    return _merge(model.named_buffers(remove_duplicate=False))


def _merge(named: Iterable[tuple[str, torch.Tensor]]) -> tuple[NamedTensor, ...]:
    tensors: dict[int, torch.Tensor] = {}
    names: dict[int, list[str]] = {}
    for name, tensor in named:
        tensors.setdefault(id(tensor), tensor)
        names.setdefault(id(tensor), []).append(name)
    return tuple(NamedTensor(names[key][0], tuple(names[key]), tensor) for key, tensor in tensors.items())
