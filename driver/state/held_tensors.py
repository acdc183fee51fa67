"""The tensors of a model that a file may hold, each once with all of its names, whole or as DTensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_SHOWN = 5
"""Names that an error lists."""


@dataclass(frozen=True)
class HeldTensor:
    """A parameter or persistent buffer of a model."""

    names: tuple[str, ...]
    """All names of it, the model's first one first."""
    tensor: Tensor

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The global one."""
        return tuple(self.tensor.shape)


def held_tensors(model: nn.Module) -> tuple[HeldTensor, ...]:
    """What `model.state_dict()` would name, without calling it: parameters and persistent buffers, ties merged."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in _named(model):
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    return tuple(HeldTensor(tuple(found), tensors[key]) for key, found in names.items())


def transient_buffers(model: nn.Module) -> Mapping[str, Tensor]:
    """The buffers that no file holds, which the model computes when it is built."""
    return {
        f"{path}.{name}" if path else name: tensor
        for path, module in model.named_modules()
        for name, tensor in module._buffers.items()
        if tensor is not None and name in module._non_persistent_buffers_set
    }


def whole(tensor: Tensor) -> Tensor:
    """The global tensor; where it is a DTensor, all processes must ask for it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def few(names: Sequence[str]) -> str:
    """The first names, quoted, and how many more there are, for an error.

    >>> few(["a", "b"])
    '"a", "b"'
    """
    shown = ", ".join(f'"{name}"' for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def is_writer() -> bool:
    """Whether this process writes what all hold alike: the only one, or rank 0."""
    return not dist.is_initialized() or dist.get_rank() == 0


def meet() -> None:
    """Wait for all processes, where there are several."""
    if dist.is_initialized():
        dist.barrier()


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    transient = transient_buffers(model)
    yield from model.named_parameters(remove_duplicate=False)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in transient:
            yield name, buffer
