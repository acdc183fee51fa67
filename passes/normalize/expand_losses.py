"""Expand elementwise losses into pointwise operations and a mean.

Before                                        After
  %1 = aten.mse_loss %x, %y, mean               %d = aten.sub %x, %y
                                                %s = aten.mul %d, %d    (or aten.pow)
                                                %1 = aten.mean %s

A single loss operation would need gathered operands; pointwise operations run on any shards, and `split-means` rewrites
the mean to a sum and a count. Each loss expands to torch's own decomposition.

Needs: to run before `split-means`.   Keeps: values, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch._decomp import decomposition_table

from ...ir.dialects.schemas import definitions
from ...ir.module import Module
from ..base import Pass, Report
from ..rewriting import Applied, Declined, Outcome, Site, rewrite
from .idioms.canonical import defaults, overload
from .idioms.tracing import Trace
from .lower_idioms import expand

LOSSES = frozenset(
    {
        "aten.mse_loss.default",
        "aten.mse_loss_backward.default",
        "aten.smooth_l1_loss.default",
        "aten.smooth_l1_loss_backward.default",
        "aten.huber_loss.default",
        "aten.huber_loss_backward.default",
        "aten.binary_cross_entropy.default",
        "aten.binary_cross_entropy_backward.default",
        "aten.binary_cross_entropy_with_logits.default",
    }
)


@dataclass(frozen=True)
class ExpandLosses(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "expand-losses"
    joins_layers: ClassVar[bool] = True

    def run(self, module: Module) -> Report:
        return rewrite(module, self.name, dict.fromkeys(LOSSES, partial(_expand, traces={})))


def _expand(site: Site, traces: dict[Any, Trace]) -> Outcome:
    name = site.call.name
    if site.call.kwargs:
        return Declined(f"{name} left: it has named arguments")
    expand(site, _expansion(name), traces)
    return Applied(f"{name} written out")


def _expansion(name: str) -> Callable[..., Any]:
    """Torch's decomposition, with the schema's defaults for omitted arguments."""
    names = [a.name for a in definitions()[name].arguments]

    def expanded(*args: Any) -> Any:
        pairs = zip(names, args, strict=True)
        return decomposition_table[overload(name)](*(defaults(name).get(n) if a is None else a for n, a in pairs))

    return expanded
