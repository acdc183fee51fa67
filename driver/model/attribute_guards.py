"""Guards on the module attributes that a captured forward read, such as `drop.p`: a program is valid while they stay.

Attributes that the forward did not read are not guarded, so a loop may write `model.epoch = 3` without a recompile.
Numbers, strings, None and small containers of them are compared by value and type, all else by identity.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import chain
from operator import is_, itemgetter
from types import MethodType
from typing import Any
from weakref import WeakMethod, ref

import torch
from torch import Tensor, nn

from ...frontend.captured import Reads

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_LARGEST = 64
"""Elements up to which a list, dict or set is compared by value, at every call; a longer one by identity."""


class ReadAttributes:
    """The attributes that one capture read. It keeps plain values and weak references only."""

    def __init__(self, model: nn.Module, modules: Sequence[nn.Module], reads: Reads) -> None:
        """`modules` are the model's, in the order of `ModuleTensors.modules`."""
        positions = {id(module): position for position, module in enumerate(modules)}
        self._takes: list[tuple[int, Callable[[Any], tuple[Any, ...]]]] = []
        """Position of a module, and the getter of its plain values."""
        self._values: list[Any] = []
        """The plain values, in the order of the getters."""
        self._others: list[tuple[int, str, Callable[[Any], bool]]] = []
        self._absent: list[tuple[int, str]] = []
        for path, module in model.named_modules():
            names = reads.get(path, ())
            self._add(positions[id(module)], vars(module), [name for name in names if name in vars(module)])
            missing = [name for name in names if not (_has_own(module, name) or _is_defined_by_class(module, name))]
            self._absent += [(positions[id(module)], name) for name in missing]

    def are_unchanged(self, modules: Sequence[nn.Module]) -> bool:
        """Whether all attributes are as they were at capture."""
        try:
            values = [getter(modules[position].__dict__) for position, getter in self._takes]
        except KeyError:
            return False
        # Most values are the same objects; comparing identities first is cheapest.
        same = all(map(is_, chain.from_iterable(values), self._values))
        if not same and _frozen_all(chain.from_iterable(values)) != _frozen_all(self._values):
            return False
        if any(
            name not in (attributes := modules[position].__dict__) or not is_it(attributes[name])
            for position, name, is_it in self._others
        ):
            return False
        return not any(_has_own(modules[position], name) for position, name in self._absent)

    def _add(self, position: int, attributes: Mapping[str, Any], names: Sequence[str]) -> None:
        plain = [name for name in names if _is_constant(attributes[name])]
        if plain:
            # With a single name, itemgetter returns no tuple: name the first one twice.
            getter = itemgetter(*plain, *plain[:1])
            self._takes.append((position, getter))
            self._values += getter(attributes)
        self._others += [(position, name, _same_as(attributes[name])) for name in names if name not in plain]


def _has_own(module: nn.Module, name: str) -> bool:
    """Whether a module has the attribute itself; faster than `hasattr` where it is missing."""
    return any(name in own for own in (vars(module), module._parameters, module._buffers, module._modules))


def _is_defined_by_class(module: nn.Module, name: str) -> bool:
    """Whether the module's class defines the attribute. The value is not read: a property may have side effects."""
    return any(name in vars(base) for base in type(module).__mro__)


def _same_as(value: Any) -> Callable[[Any], bool]:
    """A test of whether another value counts as the same as this one."""
    frozen = _frozen(value)
    if frozen is not None:
        return lambda other: _frozen(other) == frozen
    if isinstance(value, MethodType):
        return _same_method_as(value)
    version = _version(value)
    try:
        kept = ref(value)
    except TypeError:  # such as a list; a later object at the same address counts as the same
        number = id(value)
        return lambda other: id(other) == number
    return lambda other: kept() is other and _version(other) == version


def _same_method_as(value: MethodType) -> Callable[[Any], bool]:
    """A test of whether another value is the same bound method; methods are made anew at every look."""
    try:
        method = WeakMethod(value)
    except TypeError:  # its object has no weak references, as numpy's generators
        number, function = id(value.__self__), value.__func__
        return lambda other: (
            isinstance(other, MethodType) and (id(other.__self__), other.__func__) == (number, function)
        )
    return lambda other: bool(method() == other)


def _is_constant(value: Any) -> bool:
    """Whether a value is plain and immutable."""
    return isinstance(value, _PLAIN) or (type(value) is tuple and all(map(_is_constant, value)))


def _frozen_all(values: Iterable[Any]) -> list[Hashable]:
    return [_frozen(value) for value in values]


def _frozen(value: Any) -> Hashable:
    """Type and value of a plain value or a small container of them; None for any other value."""
    if isinstance(value, _PLAIN):
        return type(value), repr(value) if isinstance(value, float) else value
    if type(value) not in (tuple, list, dict, set) or (len(value) > _LARGEST and type(value) is not tuple):
        return None
    parts = sorted(value, key=repr) if isinstance(value, set) else value
    items = [item for pair in value.items() for item in pair] if isinstance(value, dict) else parts
    inner = tuple(map(_frozen, items))
    return None if None in inner else (type(value), inner)


def _version(value: Any) -> int:
    """How often a tensor was written in place; 0 for other values."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0
