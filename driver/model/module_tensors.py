"""The parameters and buffers of a model at a call, collected in a few tenths of a millisecond.

`named_parameters` takes milliseconds on a deep model. Full names follow from the names that each module gives its
children, parameters and buffers. While those stay the same, only the tensors are collected again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ...diagnostics import StrettoError

Names = tuple[tuple[str, ...], ...]
"""For each module, in order: the names of its children, of its parameters, of its buffers."""


@dataclass(frozen=True)
class ModuleTensors:
    """A model's tensors under all of their names, in the order of `named_parameters` and `named_buffers`."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    modules: Sequence[nn.Module]
    """Every module before its children; a shared module once for each of its names."""
    training: tuple[bool, ...]
    """For every module, in order: whether it is in train mode."""
    hooks: tuple[int, ...]
    """Ids of the forward hooks, which are captured with the model; unique in the process."""

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers by name."""
        return chain(self.parameters.items(), self.buffers.items())

    def with_buffers(self, others: Mapping[str, Tensor]) -> ModuleTensors:
        """With buffers that are not the model's, as in objects among the arguments."""
        return replace(self, buffers={**self.buffers, **others}) if others else self

    @property
    def classes(self) -> tuple[type[nn.Module], ...]:
        """The class of every module, in order."""
        return tuple(map(type, self.modules))

    @property
    def ties(self) -> tuple[int, ...]:
        """For each parameter and buffer, the position of the first one that is the same tensor."""
        first: dict[int, int] = {}
        both = (*self.parameters.values(), *self.buffers.values())
        return tuple([first.setdefault(id(tensor), position) for position, tensor in enumerate(both)])


class TensorCollector:
    """Collects the tensors of one model at every call. It keeps names, and no tensor or module."""

    def __init__(self) -> None:
        self._names: Names | None = None
        self._parameters: tuple[str, ...] = ()
        self._buffers: tuple[str, ...] = ()

    def collect(self, model: nn.Module) -> ModuleTensors:
        """The tensors that the model has now. Raises StrettoError E0618 for a lazy module without values."""
        modules = _walk(model)
        names = tuple(tuple(named) for m in modules for named in (m._modules, m._parameters, m._buffers))
        parameters = [tensor for m in modules for tensor in m._parameters.values() if tensor is not None]
        buffers = [tensor for m in modules for tensor in m._buffers.values() if tensor is not None]
        known = len(parameters) == len(self._parameters) and len(buffers) == len(self._buffers)
        if names != self._names or not known:
            _refuse_lazy(model)
            self._parameters = tuple(name for name, _ in model.named_parameters(remove_duplicate=False))
            self._buffers = tuple(name for name, _ in model.named_buffers(remove_duplicate=False))
            self._names = names
        return ModuleTensors(
            dict(zip(self._parameters, parameters, strict=True)),
            dict(zip(self._buffers, buffers, strict=True)),
            modules,
            tuple([m.training for m in modules]),
            tuple([hook for m in modules for hook in (*m._forward_pre_hooks, *m._forward_hooks)]),
        )


def _refuse_lazy(model: nn.Module) -> None:
    """Raise StrettoError E0618 for a parameter or buffer of a lazy module, whose shape the first forward decides."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise StrettoError(
                "E0618",
                f'"{name}" belongs to a lazy module and has no shape yet',
                expected="a model whose parameters have shapes",
                help="call the model once before stretto.compile, under torch.no_grad() and on a batch like those to "
                "come, or write its sizes out",
            )


def _walk(model: nn.Module) -> list[nn.Module]:
    """Every module before its children, in the order of `named_modules`; a shared module once for each of its names."""
    modules: list[nn.Module] = []
    pending = [model]
    while pending:
        module = pending.pop()
        modules.append(module)
        pending.extend(child for child in reversed(module._modules.values()) if child is not None)
    return modules
