"""Exports of a package that are imported when they are first used, so that one of them does not cost all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from sys import modules


def lazy_exports(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], Sequence[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562), by the module of each export, such as ".session"."""

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'", name=name, obj=modules[package])
        value: object = getattr(import_module(homes[name], package), name)
        vars(modules[package])[name] = value
        return value

    def names() -> Sequence[str]:
        return sorted({*vars(modules[package]), *homes})

    return get, names
