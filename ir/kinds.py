"""What a function of a module computes as a whole: an outlined idiom, with names for its arguments and results.

Text: `func.func private @attention(..) attributes {nn.kind = {name = "attention", operands = ["query", "key", "value"],
results = ["out", "logsumexp"], attributes = {causal = true}}}`. The body says the same in operations of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .attributes import from_attribute, to_attribute
from .bindings import Operation
from .dialects.schemas import Kind, definitions
from .operations import Call

_ATTRIBUTE = "nn.kind"


@dataclass(frozen=True)
class FunctionKind:
    """The kind of a function; a constant that is None has no attribute."""

    name: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


def kind_of_call(call: Call) -> FunctionKind:
    """The kind of a function that computes what an idiom does.

    >>> kind_of_call(Call("nn.attention", (None, None, None, None, True, None))).results
    ('out', 'logsumexp')
    """
    definition = definitions()[call.name]
    given = {a.name: v for a, v in zip(definition.arguments, call.args, strict=False) if v is not None}
    constants = {a.name for a in definition.arguments if a.kind is Kind.CONSTANT}
    return FunctionKind(
        call.name.removeprefix("nn."),
        tuple(name for name in given if name not in constants),
        definition.result_names,
        {name: value for name, value in given.items() if name in constants},
    )


def kind_of(function: Operation) -> FunctionKind | None:
    """The kind of a function; None for one without."""
    if _ATTRIBUTE not in function.attributes:
        return None
    record = from_attribute(function.attributes[_ATTRIBUTE])
    operands, results = tuple(record["operands"]), tuple(record["results"])
    return FunctionKind(record["name"], operands, results, record.get("attributes", {}))


def set_kind(function: Operation, kind: FunctionKind) -> None:
    """Give a function a kind."""
    record: dict[str, Any] = {"name": kind.name, "operands": list(kind.operands), "results": list(kind.results)}
    if kind.attributes:
        record["attributes"] = dict(kind.attributes)
    function.attributes[_ATTRIBUTE] = to_attribute(record)
