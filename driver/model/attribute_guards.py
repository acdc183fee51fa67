"""The attributes that a captured forward has read of its modules, such as `drop.p`: a program holds while they stay.

Only what was read counts, so that a loop may write `model.epoch = 3` without a new program. Numbers, strings and None
are compared by value and type, small lists, tuples and dicts of them too, tensors and other things by identity.
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
"""Longer lists, dicts and sets are compared by identity: what they hold is looked at in every call."""


class ReadAttributes:
    """What one capture has read. It keeps plain values alone, and weak references."""

    def __init__(self, model: nn.Module, modules: Sequence[nn.Module], reads: Reads) -> None:
        """`modules` are the model's in the order of `Held.modules`."""
        places = {id(module): at for at, module in enumerate(modules)}
        self._takes: list[tuple[int, Callable[[Any], tuple[Any, ...]]]] = []
        """Place of a module, and what takes its plain values."""
        self._values: list[Any] = []
        """All of them in this order."""
        self._others: list[tuple[int, str, Callable[[Any], bool]]] = []
        self._absent: list[tuple[int, str]] = []
        for path, module in model.named_modules():
            names = reads.get(path, ())
            self._add(places[id(module)], vars(module), [name for name in names if name in vars(module)])
            missing = [name for name in names if not (_is_there(module, name) or _is_of_class(module, name))]
            self._absent += [(places[id(module)], name) for name in missing]

    def hold(self, modules: Sequence[nn.Module]) -> bool:
        """Whether all of them are what they were."""
        try:
            found = [take(modules[at].__dict__) for at, take in self._takes]
        except KeyError:
            return False
        # Most values are the very same objects, which costs least to see.
        same = all(map(is_, chain.from_iterable(found), self._values))
        if not same and _frozen_all(chain.from_iterable(found)) != _frozen_all(self._values):
            return False
        if any(name not in (held := modules[at].__dict__) or not is_it(held[name]) for at, name, is_it in self._others):
            return False
        return not any(_is_there(modules[at], name) for at, name in self._absent)

    def _add(self, at: int, held: Mapping[str, Any], names: Sequence[str]) -> None:
        plain = [name for name in names if _is_constant(held[name])]
        if plain:
            # Asked for one name alone, itemgetter gives no tuple.
            take = itemgetter(*plain, *plain[:1])
            self._takes.append((at, take))
            self._values += take(held)
        self._others += [(at, name, _same_as(held[name])) for name in names if name not in plain]


def _is_there(module: nn.Module, name: str) -> bool:
    """Whether a module has an attribute of its own now; faster than to ask for one that is missing."""
    return any(name in held for held in (vars(module), module._parameters, module._buffers, module._modules))


def _is_of_class(module: nn.Module, name: str) -> bool:
    """Whether its class has the attribute. A property is not asked: it may compute, or write to buffers."""
    return any(name in vars(each) for each in type(module).__mro__)


def _same_as(value: Any) -> Callable[[Any], bool]:
    """Whether another value is taken for this one."""
    frozen = _frozen(value)
    if frozen is not None:
        return lambda other: _frozen(other) == frozen
    if isinstance(value, MethodType):
        method = WeakMethod(value)
        return lambda other: bool(method() == other)
    version = _version(value)
    try:
        kept = ref(value)
    except TypeError:  # such as a list; one that is made where it has been is taken for it
        number = id(value)
        return lambda other: id(other) == number
    return lambda other: kept() is other and _version(other) == version


def _is_constant(value: Any) -> bool:
    """Whether it is plain, and cannot be changed in place."""
    return isinstance(value, _PLAIN) or (type(value) is tuple and all(map(_is_constant, value)))


def _frozen_all(values: Iterable[Any]) -> list[Hashable]:
    return [_frozen(each) for each in values]


def _frozen(value: Any) -> Hashable:
    """Value and type of plain values, and of small containers of them; None for all else."""
    if isinstance(value, _PLAIN):
        return type(value), repr(value) if isinstance(value, float) else value
    if type(value) not in (tuple, list, dict, set) or (len(value) > _LARGEST and type(value) is not tuple):
        return None
    parts = sorted(value, key=repr) if isinstance(value, set) else value
    items = [each for pair in value.items() for each in pair] if isinstance(value, dict) else parts
    inner = tuple(map(_frozen, items))
    return None if None in inner else (type(value), inner)


def _version(value: Any) -> int:
    """How often a tensor was written to."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0
