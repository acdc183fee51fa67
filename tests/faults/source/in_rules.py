"""Faults of the tables of sharding rules: a strategy that is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stretto.passes.sharding.rules.builders import P, R, strategy, uniform
from stretto.passes.sharding.rules.strategy import Strategy

from .faults import SourceFault

TABLE = "passes.sharding.rules.table:TABLE"
FIRST, LAST = "propagate-placements", "partition-tensors"


def _instead(*made: Callable[[Any], Any]) -> Any:
    """A rule with these strategies in place of its own."""
    return lambda rule: lambda call: [each(call) for each in made]


def _complete(rule: Any) -> Any:
    """A rule that says of partial results that they are complete."""

    def faulty(call: Any) -> list[Strategy]:
        return [
            replace(each, outputs=tuple(R if out == P else out for out in each.outputs))
            if P not in each.inputs
            else each
            for each in rule(call)
        ]

    return faulty


def _fault(what: str, op: str, make: Any, case: str = "tensor", named: str = "") -> SourceFault:
    """A fault of an op's rule; `bisect` names the op, or `named` where partitioning writes other ops in its place."""
    namespace, name, *overload = (named or op).split(".")
    mlir_name = ".".join([namespace, "_".join([re.sub("^_", "u_", name), *map(str.lower, overload)])])
    return SourceFault(what, f"{TABLE}/{op}", make, FIRST, LAST, case, mlir_name)


IN_RULES = (
    _fault("a sum over shards is complete", "aten.sum.dim_IntList", _complete),
    _fault("a total over shards is complete", "aten.sum.default", _complete),
    _fault("a loss over rows is complete", "nn.cross_entropy", _complete, named="aten.sum.default"),
    _fault("an embedding's gradient is complete", "aten.embedding_dense_backward.default", _complete),
    _fault("a norm's parameter gradients are complete", "nn.layer_norm_backward", _complete),
    _fault("a root mean square's gradients are complete", "nn.rms_norm_backward", _complete),
    _fault("an embedding looks up what it does not hold", "aten.embedding.default", _instead(
        lambda call: strategy([P], [0, None], fills=(None, None)),
    )),
    _fault("a norm is cut by what it normalizes", "nn.layer_norm", _instead(
        lambda call: strategy([2, None, None], [2, 0, 0]),
    ), "sequence"),
    _fault("a transpose leaves its shards", "aten.transpose.int", _instead(
        *(lambda call, d=d: uniform(call, d, d) for d in range(4)),
    )),
    _fault("a softmax is cut by classes", "aten._softmax.default", _instead(
        lambda call: uniform(call, 1, 1),
    ), "images"),
    SourceFault("padding of a sum holds ones", "passes.sharding.rules.builders:_filled",
                lambda filled: lambda candidate: _filled_with_ones(filled(candidate)), FIRST, LAST),
)  # fmt: skip
"""All faults of rules."""


def _filled_with_ones(candidate: Strategy) -> Strategy:
    return replace(candidate, fills=tuple(None if fill is None else 1.0 for fill in candidate.fills))
