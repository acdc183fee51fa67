"""Replace chains of aten operations that compute a known idiom by one nn operation, forward and backward.

Before                                                       After
  %0 = aten._log_softmax %logits, 1                            %total, %count, %lse = nn.cross_entropy %logits, %labels
  %loss, %n = aten.nll_loss_forward %0, %labels                %loss = aten.div %total, %count
  ...                                                          ...
  %1 = aten.nll_loss_backward %grad, %0, %labels, %n           %scale = aten.div %grad, %count
  %2 = aten._log_softmax_backward_data %1, %0, 1               %2 = nn.cross_entropy_backward %scale, %logits, ..., %lse

Idioms: attention, layer_norm, rms_norm, rotary, cross_entropy. They are recognised by dataflow alone. A near match is
left, and a remark says what differs.

Needs: level `aten`, forward and backward in one function.   Keeps: values (up to rounding).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from ...ir.locations import Origin, from_location
from ...ir.module import Level, Module, operations
from ...ir.operations import read
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..rewriting import erase_unused, site_weights
from .idioms.attention import raise_attention
from .idioms.cross_entropy import raise_cross_entropy
from .idioms.derive import Derivations
from .idioms.findings import Findings
from .idioms.function_dataflow import FunctionDataflow
from .idioms.layer_norm import raise_layer_norm
from .idioms.rms_norm import raise_rms_norm
from .idioms.rotary import raise_rotary


@dataclass(frozen=True)
class RaiseIdioms(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "raise-idioms"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    joins_layers: ClassVar[bool] = True

    def run(self, module: Module) -> Report:
        """Search every function for every idiom."""
        derivations, weights = Derivations(), site_weights(module)
        before, count, remarks = _idioms(module), 0, CountedRemarks(self.name)
        missed: list[tuple[str, Origin, int]] = []
        for name, function in module.functions().items():
            graph, findings = FunctionDataflow(function), Findings()
            raise_attention(graph, findings)
            raise_layer_norm(graph, findings)
            raise_cross_entropy(graph, findings)
            raise_rms_norm(graph, findings, derivations)
            raise_rotary(graph, findings, derivations)
            erase_unused(function)
            count += findings.raised.total() * weights[name]
            missed += [(message, origin, weights[name]) for message, origin in findings.missed]
        for (idiom, origin), raised in (_idioms(module) - before).items():
            remarks.applied(idiom, origin, raised)
        for message, origin, times in missed:
            remarks.missed(message, origin, times)
        return Report(count, remarks.remarks())


def _idioms(module: Module) -> Counter[tuple[str, Origin]]:
    """The nn operations of all functions, by name and place."""
    found: Counter[tuple[str, Origin]] = Counter()
    weights = site_weights(module)
    for name, function in module.functions().items():
        for op in operations(function):
            if op.operation.name.startswith("nn.") and (call := read(op)) is not None:
                found[call.name, from_location(op.location)] += weights[name]
    return found
