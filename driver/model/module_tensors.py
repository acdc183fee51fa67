"""What a model holds at a call. `named_parameters` costs milliseconds on a deep model, and this a few tenths of one.

The names of tensors follow from the names that each module gives to its children, parameters and buffers. While those
stay, the names stay, and only the tensors are collected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

Names = tuple[tuple[str, ...], ...]
"""For each module, in order: the names of its children, its parameters, its buffers."""


@dataclass(frozen=True)
class Held:
    """The model's tensors by all of their names, in the order of `named_parameters` and `named_buffers`."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    modules: Sequence[nn.Module]
    """Every module before its children; shared ones each time they are named."""
    training: tuple[bool, ...]
    """Of every module, in order: train() or eval()."""
    hooks: tuple[int, ...]
    """The numbers, unique in the process, of the hooks around the forwards, which are captured with them."""

    @property
    def classes(self) -> tuple[type[nn.Module], ...]:
        """Of every module, in order."""
        return tuple(map(type, self.modules))

    @property
    def ties(self) -> tuple[int, ...]:
        """For each parameter and buffer the position of the first that is the same tensor."""
        first: dict[int, int] = {}
        both = (*self.parameters.values(), *self.buffers.values())
        return tuple([first.setdefault(id(each), at) for at, each in enumerate(both)])


class Holder:
    """Looks into one model, call after call. It keeps names, and no tensor or module."""

    def __init__(self) -> None:
        self._names: Names | None = None
        self._parameters: tuple[str, ...] = ()
        self._buffers: tuple[str, ...] = ()

    def look(self, model: nn.Module) -> Held:
        """What the model holds now."""
        modules = _walk(model)
        names = tuple(tuple(named) for m in modules for named in (m._modules, m._parameters, m._buffers))
        parameters = [each for m in modules for each in m._parameters.values() if each is not None]
        buffers = [each for m in modules for each in m._buffers.values() if each is not None]
        known = len(parameters) == len(self._parameters) and len(buffers) == len(self._buffers)
        if names != self._names or not known:
            self._parameters = tuple(name for name, _ in model.named_parameters(remove_duplicate=False))
            self._buffers = tuple(name for name, _ in model.named_buffers(remove_duplicate=False))
            self._names = names
        return Held(
            dict(zip(self._parameters, parameters, strict=True)),
            dict(zip(self._buffers, buffers, strict=True)),
            modules,
            tuple([m.training for m in modules]),
            tuple([hook for m in modules for hook in (*m._forward_pre_hooks, *m._forward_hooks)]),
        )


def _walk(model: nn.Module) -> list[nn.Module]:
    """Every module before its children, in the order of `named_modules`; shared ones each time they are named."""
    found: list[nn.Module] = []
    ahead = [model]
    while ahead:
        module = ahead.pop()
        found.append(module)
        ahead.extend(each for each in reversed(module._modules.values()) if each is not None)
    return found
