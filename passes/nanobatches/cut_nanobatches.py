"""Run layers on nanobatches, parts of the tokens or of the batch, one after the other or by turns.

Before                                            After (2 nanobatches of dim 1, by turns)
  %h = nn.linear %x, %w                             %x0 = aten.slice %x, first half; %h0 = nn.linear %x0, %w
  %y = comm.all_reduce %h over ["tp"]               %y0 = comm.all_reduce %h0 over ["tp"]
  %z = aten.gelu %y                                 %x1 = ..; %h1 = nn.linear %x1, %w
  ..                                                %y1 = comm.all_reduce %h1 over ["tp"]
  %dw = nn.sum_of_outer_products %dh, %x            %z0 = aten.gelu %y0;  %z1 = aten.gelu %y1
                                                    %dw = nn.sum_of_outer_products %dh0, %x0  + .. of the other half

A nanobatch is a shard in time. How an operation runs on one is what its sharding strategies say: parts are joined where
something needs the whole, sums that a strategy leaves partial are added. What does not depend on the dim runs once. So
attention of a part of the queries reads all keys and values, and counts positions from where its part begins. Inputs
are views. What crosses from layer to layer, and from forward to backward, crosses in parts, so nothing is joined there.

`order sequence` runs one nanobatch after the other, and what it needs lives as long as it: with `recompute`, the
backward computes a nanobatch again right before its gradients. `order interleave` lets nanobatches take turns, each of
which ends with a collective; `start-collectives` then keeps it under way during the turn of another.

Needs: level `comm`, idioms not lowered.   Keeps: values, up to the order of sums.
Source: StreamBP (arXiv:2506.03077); NanoFlow (arXiv:2408.12757); two-batch overlap, DeepSeek-V3 (arXiv:2412.19437).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...dsl.memory.nanobatches import OrderOfNanobatches
from ...dsl.plan import Plan
from ...ir.locations import Origin
from ...ir.module import Level, Module, entry
from ..base import Pass, Remark, RemarkKind, Report
from ..counted_remarks import CountedRemarks
from ..graph import Graph, Node
from ..overlap.custom_ops import communication_barriers
from ..plan_effects import key_of
from .placing import Copied, Placing, Signature, signature_of
from .region import Region
from .rewriting import Rewriting


@dataclass(frozen=True)
class CutNanobatches(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "cut-nanobatches"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    plan: Plan
    """The plan; its `split tokens` or `split batch` statement is used."""

    def run(self, module: Module) -> Report:
        statement = self.plan.nanobatches
        if statement is None:
            return Report()
        region, key = Region(statement, module), key_of(self.plan.statements.index(statement))
        region.check()
        if not region.is_reached:
            remark = Remark(self.name, RemarkKind.NOTE, region.unreached, span=statement.span)
            return Report(0, (remark,), {key: ""})
        functions = _Functions(region, module.successor())
        count = functions.rewrite()
        if not count:
            reason = f"no operation that it names runs on a part of the {statement.subject}"
            if functions.first_whole is not None:
                reason += f": {functions.first_whole.name} needs all of them ({functions.first_whole.origin})"
            return Report(0, functions.remarks.remarks(), {key: reason})
        module.become(functions.new)
        sizes = ", ".join(map(str, region.parts.sizes))
        message = f"{count} operations run in {region.parts.count} nanobatches of {sizes} {_UNITS[statement.subject]}"
        applied = Remark(self.name, RemarkKind.APPLIED, message, span=statement.span)
        return Report(count, (applied, *functions.remarks.remarks()), {key: ""})


_UNITS = {"tokens": "tokens", "batch": "samples"}


@dataclass
class _Functions:
    """The copies of functions that have been made, by how their arguments are cut."""

    region: Region
    new: Module
    remarks: CountedRemarks = field(default_factory=lambda: CountedRemarks(CutNanobatches.name))
    first_whole: Node | None = None
    """The first operation that needs all tokens, or samples."""
    _made: dict[Signature, Copied] = field(default_factory=dict)
    _counts: dict[Signature, int] = field(default_factory=dict)
    """How many operations of a copy run on nanobatches."""
    _names: set[str] = field(default_factory=set)

    def rewrite(self) -> int:
        """Rewrite main and what it calls; how many operations run on nanobatches, those of layers at each call."""
        main = self.region.module.functions()["main"]
        cuts = [self.region.cut_of(argument) for argument in entry(main).arguments]
        placing = self._placing(signature_of(main, self.region, cuts, Origin()))
        return len(placing.ways) + sum(self._counts[signature] for signature, _ in placing.calls.values())

    def copy(self, signature: Signature) -> Copied:
        """The copy for a signature."""
        if signature not in self._made:
            self._placing(signature)
        return self._made[signature]

    def _placing(self, signature: Signature) -> Placing:
        module = self.region.module
        graph = Graph.of(module.functions()[signature.name])
        placing = Placing(graph, self.region, signature, self.copy, communication_barriers(module))
        placing.run()
        inside = dict(zip(graph.nodes, signature.inside, strict=True))
        for node in placing.needs_whole:
            self.first_whole = self.first_whole or node
            if inside[node]:
                message = f"{node.name} runs once, on all of the {self.region.statement.subject}"
                self.remarks.missed(message, node.origin)
        interleaves = self.region.statement.order is OrderOfNanobatches.INTERLEAVE
        rewriting = Rewriting(placing, self.new, self._name(signature.name), interleaves)
        self._made[signature], self._counts[signature] = rewriting.run(), len(placing.ways)
        return placing

    def _name(self, name: str) -> str:
        known, fresh, number = self.region.module.functions(), name, 0
        while fresh in self._names or (fresh != name and fresh in known):
            number += 1
            fresh = f"{name}_{number}"
        self._names.add(fresh)
        return fresh
