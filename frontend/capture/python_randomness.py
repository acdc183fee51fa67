"""Find random numbers that a traced forward draws in Python: a compiled model repeats those of its first call.

Functions of `random` and `numpy.random` are replaced while the forward is traced, so that the user's line is known.
Functions that were imported by name (`from random import random`), and generators that modules hold, are found by the
states of the generators alone.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any

import numpy
from torch import nn

from ..metadata import forward_span, is_users_file


@dataclass(frozen=True)
class _Library:
    """A module whose functions draw from one global generator."""

    module: ModuleType
    generator: object


_GENERATORS = (random.Random, numpy.random.Generator, numpy.random.RandomState)
_LIBRARIES = tuple(_Library(module, getattr(module.random, "__self__", None)) for module in (random, numpy.random))


@contextmanager
def python_randomness_recorded(model: nn.Module, places: dict[str, None]) -> Iterator[None]:
    """Inside, the lines ("file:line") of the user's that draw in Python are recorded in `places`.

    Where a generator has drawn but no call was seen, the line of the model's forward is. Draws of libraries are not.
    """
    generators = [*_generators(model), *(library.generator for library in _LIBRARIES)]
    before = [_state(generator) for generator in generators]
    seen: set[int] = set()
    make = numpy.random.default_rng
    replaced = [(library, *each) for library in _LIBRARIES for each in _functions(library)]
    try:
        for library, name, function in replaced:
            setattr(library.module, name, _recording(library, function, places, seen))
        numpy.random.default_rng = _recording_unseeded(make, places)
        yield
    finally:
        numpy.random.default_rng = make
        for library, name, function in replaced:
            setattr(library.module, name, function)
    after = [_state(generator) for generator in generators if id(generator) not in seen]
    span = forward_span(model)
    if span is not None and any(state not in before for state in after):
        places[f"{span.file}:{span.line}"] = None


def _generators(model: nn.Module) -> list[object]:
    """The generators that modules hold, by themselves or by a method."""
    held = (value for module in model.modules() for value in vars(module).values())
    return [owner for value in held if isinstance(owner := getattr(value, "__self__", value), _GENERATORS)]


def _state(generator: object) -> bytes:
    return pickle.dumps(generator)


def _functions(library: _Library) -> list[tuple[str, Callable[..., Any]]]:
    """The module's functions that are methods of its generator, but for those that read or set its state."""
    return [
        (name, value)
        for name, value in vars(library.module).items()
        if callable(value)
        and getattr(value, "__self__", None) is library.generator
        and "state" not in name
        and name != "seed"
    ]


def _recording_unseeded(make: Callable[..., Any], places: dict[str, None]) -> Callable[..., Any]:
    """`default_rng`, which makes other numbers at every call unless it is given a seed."""

    @wraps(make)
    def record(seed: object = None) -> Any:
        frame = sys._getframe(1)
        if seed is None and is_users_file(frame.f_code.co_filename):
            places[f"{frame.f_code.co_filename}:{frame.f_lineno}"] = None
        return make(seed)

    return record


def _recording(
    library: _Library, function: Callable[..., Any], places: dict[str, None], seen: set[int]
) -> Callable[..., Any]:
    @wraps(function)
    def record(*args: Any, **kwargs: Any) -> Any:
        seen.add(id(library.generator))
        frame = sys._getframe(1)
        if is_users_file(frame.f_code.co_filename):
            places[f"{frame.f_code.co_filename}:{frame.f_lineno}"] = None
        return function(*args, **kwargs)

    return record
