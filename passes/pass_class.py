"""The class of a pass by its name: imports its module, and what that needs."""

from __future__ import annotations

from importlib import import_module

from ..diagnostics import StrettoError
from .base import Pass
from .registry import place_of


def pass_class(name: str) -> type[Pass]:
    """The class of a pass that is not upstream's; E0410 for an unknown name, with the nearest, E0411 for no pass."""
    module, _, attribute = place_of(name).partition(":")
    found = getattr(import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise StrettoError("E0411", f'the pass "{name}" is registered as {found!r}, which is no subclass of Pass')
    return found
