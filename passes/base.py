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
    """Whether a remark reports a rewrite, a missed rewrite, a fact, or something about a statement of the plan."""

    APPLIED = "applied"
    MISSED = "missed"
    NOTE = "note"
    WARNING = "warning"
    """A request of the user has no effect."""
    IMPLIED = "implied"
    """The message is a statement that the plan does not write out."""


@dataclass(frozen=True)
class Remark:
    """One rewrite that a pass did or declined, with its place in the user's model or in the plan."""

    pass_name: str
    kind: RemarkKind
    message: str
    origin: Origin = Origin()
    span: Span | None = None
    """The statement of the plan that it concerns."""

    def __str__(self) -> str:
        where = self.span or (self.origin if self.origin != Origin() else None)
        return f"{self.kind}[{self.pass_name}]: {self.message}" + (f" ({where})" if where else "")


@dataclass(frozen=True)
class Report:
    """The result of one run of a pass."""

    rewritten: int = 0
    """Sites rewritten."""
    remarks: tuple[Remark, ...] = ()
    effects: Mapping[str, str] = field(default_factory=dict)
    """By key of a statement of the plan (`plan_effects.py`): why it had no effect; empty if it had one."""
    figures: Mapping[str, int] = field(default_factory=dict)
    """What the pass has counted, by name, for who chooses between plans."""


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a module, in place. Same module and options, same result: no order from sets, ids or clocks."""

    name: ClassVar[str]
    """Verb-object in kebab-case; the file has the same name."""
    levels: ClassVar[frozenset[Level]] = frozenset(Level)
    """The levels of modules that it takes; the manager refuses others (E0421)."""
    keeps_values: ClassVar[bool] = True
    """Whether the pass preserves the values of the module; false for a pass by which a plan statement changes the
    function, which comparisons then skip, unless it says by `averages_microbatches` what it makes of it."""
    averages_microbatches: ClassVar[bool] = False
    """Whether the module after the pass computes the mean over microbatches of the module before it, as
    `ir/equivalence/microbatch_mean.py` defines it."""

    joins_layers: ClassVar[bool] = False
    """Whether the pass is to see forward and backward of a folded layer as one function: at level `aten`, or at level
    `comm` if it takes no other."""

    @abstractmethod
    def run(self, module: Module) -> Report:
        """Rewrite the module; the manager verifies before and after."""

    def broken_contract(self, module: Module) -> str:
        """What the pass promises beyond values and does not hold in the module after it; empty if all holds.

        Comparisons of passes (`stretto verify`) ask this.
        """
        return ""
