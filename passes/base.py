"""What a pass is: a frozen dataclass with a name, whose fields are its options, and a `run` that rewrites a module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from ..diagnostics import Span
from ..ir.locations import Origin
from ..ir.module import Level, Module


class RemarkKind(StrEnum):
    """What a remark says: something was rewritten, something was not, or something to know."""

    APPLIED = "applied"
    MISSED = "missed"
    NOTE = "note"
    WARNING = "warning"
    """What the user asked for has no effect."""


@dataclass(frozen=True)
class Remark:
    """One thing a pass did or declined, with the place in the user's model, or in the plan."""

    pass_name: str
    kind: RemarkKind
    message: str
    origin: Origin = Origin()
    span: Span | None = None
    """The statement of the plan that it is about."""

    def __str__(self) -> str:
        where = self.span or (self.origin if self.origin != Origin() else None)
        return f"{self.kind}[{self.pass_name}]: {self.message}" + (f" ({where})" if where else "")


@dataclass(frozen=True)
class Report:
    """What one run of a pass did."""

    rewritten: int = 0
    """Sites rewritten."""
    remarks: tuple[Remark, ...] = ()
    effects: Mapping[str, str] = field(default_factory=dict)
    """For statements of the plan, by their keys (`statements.py`): why it had no effect; empty where it had one."""


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a module, in place. Same module and options, same result: no order from sets, ids or clocks."""

    name: ClassVar[str]
    """Verb-object in kebab-case; the file has the same name."""
    levels: ClassVar[frozenset[Level]] = frozenset(Level)
    """Of the modules that it takes; the manager refuses others (E0421)."""
    keeps_values: ClassVar[bool] = True
    """Whether the module computes the same after it; a pass that a statement of the plan has change the function says
    no, and is not judged by values."""

    @abstractmethod
    def run(self, module: Module) -> Report:
        """Rewrite the module; the manager verifies before and after."""
