"""The peaks that a plan allows: an attribute of the module, from `cap-memory` to `schedule-lanes`."""

from __future__ import annotations

from collections.abc import Mapping

from ...ir.attributes import from_attribute, to_attribute
from ...ir.module import Module

_CAPS = "comm.caps"


def store_caps(module: Module, caps: Mapping[str, float]) -> None:
    """Note by entry the bytes, beyond its arguments, that may be alive at once; nothing where the plan says nothing."""
    if caps:
        module.operation.attributes[_CAPS] = to_attribute([[name, int(cap)] for name, cap in caps.items()])


def take_caps(module: Module) -> dict[str, int]:
    """The same, removed from the module."""
    attributes = module.operation.attributes
    if _CAPS not in attributes:
        return {}
    caps = {str(name): int(cap) for name, cap in from_attribute(attributes[_CAPS])}
    del attributes[_CAPS]
    return caps
