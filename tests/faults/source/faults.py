"""A fault of the source: a function to patch, and what it then does wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest

LOWERING = "lower to program"
"""In place of a pass: the fault is in lowering."""


@dataclass(frozen=True)
class SourceFault:
    """One fault. `where` names the function, class or table entry by its meaning: "package.module:name.attribute"."""

    what: str
    where: str
    make: Callable[[Any], Any]
    """From what is there, what stands there with the fault."""
    first: str
    """The first pass that runs with the fault."""
    last: str = ""
    """The last pass that is checked; the first where it is empty."""
    case: str = "tensor"
    op: str = ""
    """The operation that `bisect` names, where the structure of the module does not tell: of rules and lowering."""

    def __str__(self) -> str:
        return self.what.replace(" ", "-")

    @property
    def steps(self) -> tuple[str, str]:
        """The first and the last pass."""
        return self.first, self.last or self.first

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        """Patch the source."""
        module_name, _, path = self.where.partition(":")
        holder: Any = import_module(f"stretto.{module_name}")
        *outer, name = path.split("/")
        for part in outer:
            holder = holder[part] if isinstance(holder, dict) else getattr(holder, part)
        if isinstance(holder, dict):
            patch.setitem(holder, name, self.make(holder[name]))
        else:
            patch.setattr(holder, name, self.make(getattr(holder, name)))
        import_module("stretto.passes.sharding.rules.lookup")._cached_strategies.cache_clear()
