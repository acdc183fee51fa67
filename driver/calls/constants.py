"""Constants of a call: for each kind of plain value that the forward takes, two values with which it gives others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import CodeType
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from .arguments import Arguments
from .eager_results import are_equal, returned

_KINDS = (bool, int, float, str, type(None))
_TRIED = 8
"""Values of one kind that are tried at most: each costs a forward in eager mode."""


@dataclass(frozen=True)
class Constants:
    """A call with another constant."""

    text: str
    """The constant and its value."""
    arguments: Arguments


def varied_constants(model: nn.Module, arguments: Arguments) -> list[Constants]:
    """For each kind of constant, two calls: with another value, and with the target's own again.

    A constant is an argument, or stands inside of one. Of each kind, the first constant counts that eager mode takes
    with another value, and with which it returns something else.
    """
    signature = inspect.signature(model.forward)
    defaults = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.default is not parameter.empty and name != "use_cache"
    }
    given: dict[str, Any] = {**defaults, **arguments}
    own = returned(model, arguments)
    if own is None:
        return []
    places = [_Place(path, leaf) for path, leaf in pytree.tree_flatten_with_path(given)[0]]
    calls = []
    for kind in _KINDS:
        tried = ((place, other) for place in places if type(place.value) is kind for other in _others(place, model))
        for place, other in islice(tried, _TRIED):
            changed = place.call(arguments, given, other)
            result = returned(model, changed.arguments)
            if result is not None and not are_equal(own, result):
                calls += [changed, place.call(arguments, given, place.value)]
                break
    return calls


@dataclass(frozen=True)
class _Place:
    """Where a constant is among the arguments."""

    path: tuple[Any, ...]
    value: Any

    def call(self, arguments: Arguments, given: Mapping[str, Any], other: Any) -> Constants:
        """The call with another value here; `given` are the arguments with those of all defaults."""
        argument = str(self.path[0].key)
        changed = pytree.tree_map_with_path(
            lambda path, leaf: other if path == self.path[1:] else leaf, given[argument]
        )
        text = f"{argument}{pytree.keystr(self.path[1:])}={other!r}"
        return Constants(text, {**arguments, argument: changed})


def _others(place: _Place, model: nn.Module) -> list[Any]:
    """Other values to try; for a string, those that the forward mentions."""
    match value := place.value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value - 1]
        case float():
            return [value / 2 if value else 0.5, value + 1]
        case str():
            return sorted(set(_words(model.forward.__code__)) - {value})
        case _:
            return [0.5, 2, True]


def _words(code: CodeType) -> Iterator[str]:
    """The strings in a function's code that could be an argument's value."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _words(constant)
        elif isinstance(constant, tuple | frozenset):
            yield from (each for each in constant if isinstance(each, str))
        elif isinstance(constant, str):
            yield constant
