"""Find what the masks of attention hide: one that is causal and nothing else becomes a flag.

Before                                         After
  %i = aten.arange 8                             %o, %l = nn.attention %q, %k, %v {causal = true}
  %m = aten.le (%i : 1x8), (%i : 8x1)
  %f = aten.where %m, 0, -inf
  %o, %l = nn.attention %q, %k, %v, %f

So no rank holds a mask of queries times keys, and kernels and rings leave out what is hidden. A mask that shows all
keys goes too. Of another mask it is noted which keys it shows at most, by the difference of a query's and a key's
index: a causal mask of padded rows or of packed documents has `band = {lowest = 0}`, one of a window
`band = {highest = 2, lowest = 0}`.

Masks are found by their values, through comparisons of counted positions, views and calls of functions (`dataflow.py`).
What is not known is taken to be finite: -inf plus it hides.

Needs: level `aten`, idioms raised (`raise-idioms`), layers folded.   Keeps: values.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

from ...ir.attention_methods import ATTENTION, set_band
from ...ir.bindings import mlir
from ...ir.dialects.context import context
from ...ir.module import Level, Module
from ...ir.operations import Call, build, read
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..layers.joint_layers import joined
from ..layers.unused_arguments import drop_unused_arguments
from ..rewriting import Site, erase_unused, site_weights, sites
from .dataflow import KnownValues
from .known import EVERYWHERE, Cases, Interval

_MASK = {ATTENTION[0]: 3, ATTENTION[1]: 6}
"""By operation, which argument its mask is; `causal` follows it."""
_OFFSETS = 3
"""How many arguments after the mask the offsets of positions begin."""


@dataclass(frozen=True)
class FindCausalMasks(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "find-causal-masks"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})

    def run(self, module: Module) -> Report:
        remarks, weights, count = CountedRemarks(self.name), site_weights(module), 0
        masked = [site for site in sites(module, ATTENTION) if _has_mask(site)]
        if not masked:
            return Report()
        values = KnownValues(module)
        found = [values.of(site.call.args[_MASK[site.call.name]]) for site in masked]
        for site, known in zip(masked, found, strict=True):
            if not isinstance(known, Cases):
                continue
            what = "it shows all keys" if known.value == 0.0 else "it is causal" if _is_causal(known) else ""
            if not what:
                shown = _shown(known)
                set_band(site.op, (shown.lowest, shown.highest))
                continue
            _drop_mask(site, causal=known.value != 0.0)
            remarks.applied(f"mask left out: {what}", site.origin, weights[site.function])
            count += weights[site.function]
        if count:
            with joined(module):
                for function in module.functions().values():
                    erase_unused(function)
            drop_unused_arguments(module)
            erase_unused(module.functions()["main"])
        return Report(count, remarks.remarks())


def _has_mask(site: Site) -> bool:
    """Whether an attention has a mask, and counts positions from 0."""
    at = _MASK[site.call.name]
    return site.call.args[at] is not None and not any(site.call.args[at + _OFFSETS :])


def _shown(known: Cases) -> Interval:
    """The differences of a query's and a key's index for which a mask may show the key."""
    if known.steps != (*[0] * (len(known.steps) - 2), 1, -1):
        return EVERYWHERE
    shown = Interval(inf, -inf)
    for value, interval in known.where:
        shown = shown if value == -inf else shown | interval
    return shown


def _is_causal(known: Cases) -> bool:
    """Whether elements are 0 where the key is not after the query, and -inf where it is."""
    where = dict(known.where)
    shown = _shown(known)
    return where.keys() == {0.0, -inf} and shown.lowest == 0 and where[-inf].highest == -1


def _drop_mask(site: Site, *, causal: bool) -> None:
    call = read(site.op)  # again: the backward's operands were the results of a forward that is gone by now
    assert call is not None
    at, args = _MASK[call.name], list(call.args)
    args[at : at + 2] = None, causal or args[at + 1]
    with context(), mlir.InsertionPoint(site.op):
        results = build(Call(call.name, tuple(args)), [r.type for r in site.op.results], site.op.location)
    site.replace(*results)
