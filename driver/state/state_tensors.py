"""The tensors of a model's state dict, tied names merged, as plain tensors or DTensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...diagnostics import StrettoError
from ...runtime.processes.world import join

_SHOWN = 5
"""Names that an error lists."""


@dataclass(frozen=True)
class StateTensor:
    """A parameter or persistent buffer of a model."""

    names: tuple[str, ...]
    """All its names, in the model's order."""
    tensor: Tensor

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The global shape."""
        return tuple(self.tensor.shape)


def state_tensors(model: nn.Module) -> tuple[StateTensor, ...]:
    """The tensors of `model.state_dict()`, without calling it: parameters and persistent buffers, tied ones once."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in _named(model):
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    return tuple(StateTensor(tuple(aliases), tensors[key]) for key, aliases in names.items())


def transient_buffers(model: nn.Module) -> Mapping[str, Tensor]:
    """The buffers outside the state dict, by name; the model computes them when it is built."""
    return {
        f"{path}.{name}" if path else name: tensor
        for path, module in model.named_modules()
        for name, tensor in module._buffers.items()
        if tensor is not None and name in module._non_persistent_buffers_set
    }


def full_tensor(tensor: Tensor) -> Tensor:
    """The global tensor; for a DTensor this is a collective, so all processes must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def names_text(names: Sequence[str]) -> str:
    """The first names in quotes, and the number of the others, for an error.

    >>> names_text(["a", "b"])
    '"a", "b"'
    """
    shown = ", ".join(f'"{name}"' for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def is_writer() -> bool:
    """Whether this process writes files: it is rank 0, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def write_alone(write: Callable[[], None]) -> None:
    """Run `write` in the process that writes files; all wait for it, and raise the StrettoError that it raises."""
    failure: StrettoError | None = None
    if is_writer():
        try:
            write()
        except StrettoError as error:
            failure = error
    if not dist.is_initialized():
        if failure is not None:
            raise failure
        return
    said = [failure.code, failure.message, failure.help] if failure is not None else []
    code_message_help = json.loads(join().all_gather_texts(json.dumps(said))[0])
    if failure is not None:
        raise failure
    if code_message_help:
        code, message, help = code_message_help
        raise StrettoError(code, message, help=help, notes=(("rank 0 writes", None),))


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    transient = transient_buffers(model)
    yield from model.named_parameters(remove_duplicate=False)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in transient:
            yield name, buffer
