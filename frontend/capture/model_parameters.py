"""The parameters and buffers of a model: names, aliases, shapes, and the kind of module that owns each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ...dsl.resolve import OwnerKind, ParameterInfo

_TRANSPOSED = frozenset({"transformers.pytorch_utils.Conv1D"})
"""Linear layers whose weight is stored (in, out), by qualified class name."""


def parameter_infos(model: nn.Module) -> tuple[ParameterInfo, ...]:
    """Every parameter once, in the order of `model.named_parameters()`, with all names of tied ones.

    A parameter tied between modules has the kind of the one that names it first.
    """
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    return tuple(
        ParameterInfo(name, tuple(aliases[id(parameter)]), tuple(parameter.shape), _owner_kind(model, name))
        for name, parameter in model.named_parameters()
    )


def _owner_kind(model: nn.Module, name: str) -> OwnerKind:
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.Linear):
        return OwnerKind.LINEAR
    if isinstance(owner, nn.Embedding):
        return OwnerKind.EMBEDDING
    classes = {f"{c.__module__}.{c.__qualname__}" for c in type(owner).__mro__}
    return OwnerKind.LINEAR_TRANSPOSED if classes & _TRANSPOSED else OwnerKind.OTHER


@dataclass(frozen=True)
class NamedTensor:
    """A parameter or buffer with its first name and all of its names."""

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
