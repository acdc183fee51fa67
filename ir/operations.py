"""Operations as (name, arguments): build one, and read one back.

Passes use these instead of operand positions, segment sizes and attribute classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .attention_methods import BAND
from .attributes import from_attribute, to_attribute
from .bindings import Location, Operation, Type, Value, mlir
from .dialects.context import context
from .dialects.schemas import Kind, by_mlir_name, definitions
from .lanes import set_lane

PACK = "builtin.unrealized_conversion_cast"


@dataclass(frozen=True)
class Call:
    """One operation: its Stretto name and its arguments in schema order (values, lists of values, or constants)."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def values(self) -> list[Value]:
        """The tensor operands, flattened in schema order."""
        flat: list[Value] = []
        for argument in (*self.args, *self.kwargs.values()):
            if isinstance(argument, mlir.Value):
                flat.append(argument)
            elif isinstance(argument, (list, tuple)):
                flat.extend(a for a in argument if isinstance(a, mlir.Value))
        return flat

    def replace_values(self, values: Sequence[Value]) -> Call:
        """The same call with its tensor operands replaced in order."""
        remaining = iter(values)

        def swap(argument: Any) -> Any:
            if isinstance(argument, mlir.Value):
                return next(remaining)
            if isinstance(argument, (list, tuple)):
                return [swap(a) for a in argument]
            return argument

        args = tuple(swap(a) for a in self.args)
        return Call(self.name, args, {k: swap(v) for k, v in self.kwargs.items()})


def build(call: Call, results: Sequence[Type], loc: Location, lane: str = "") -> list[Any]:
    """Insert the operation at the current insertion point; returns its results (a list for each `Tensor[]`).

    `results` has one type per result, and a list of types for a `Tensor[]` result. `lane` is the lane that it names.
    """
    definition = definitions()[call.name]
    positional = [*call.args, *([None] * (len(definition.arguments) - len(call.args)))]
    operands: list[Value] = []
    sizes: list[int] = []
    attributes: dict[str, Any] = {}
    for i, argument in enumerate(definition.arguments):
        value: Any = call.kwargs.get(argument.name) if argument.name in call.kwargs else positional[i]
        match argument.kind:
            case Kind.IGNORED:
                continue
            case Kind.CONSTANT:
                if value is not None:
                    attributes[argument.name] = to_attribute(value)
                continue
            case Kind.TENSORS:
                value = pack(value, loc)
            case Kind.OPTIONAL_TENSORS:
                attributes[f"{argument.name}_present"] = to_attribute([v is not None for v in value])
                value = pack([v for v in value if v is not None], loc)
            case Kind.TENSOR | Kind.OPTIONAL_TENSOR:
                pass
        sizes.append(0 if value is None else 1)
        if value is not None:
            operands.append(value)
    if definition.has_segments:
        attributes["operandSegmentSizes"] = mlir.DenseI32ArrayAttr.get(sizes, context())
    types = [_tuple_type(t) if isinstance(t, (list, tuple)) else t for t in results]
    op = mlir.Operation.create(definition.mlir_name, results=types, operands=operands, attributes=attributes, loc=loc)
    set_lane(op, lane)
    built = list(op.results)
    return [
        unpack(value, types, loc) if isinstance(types, (list, tuple)) else value
        for value, types in zip(built, results, strict=True)
    ]


def read(op: Operation) -> Call | None:
    """The operation as a call; None for one of another dialect (func, builtin)."""
    definition = by_mlir_name().get(op.operation.name)
    if definition is None:
        return None
    attributes = op.attributes
    operands = iter(op.operands)
    sizes = iter(attributes["operandSegmentSizes"]) if definition.has_segments else None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in definition.arguments:
        value: Any = None
        if argument.kind is Kind.IGNORED:
            if argument.keyword:
                continue
        elif argument.kind is Kind.CONSTANT:
            value = from_attribute(attributes[argument.name]) if argument.name in attributes else None
        else:
            is_present = sizes is None or bool(next(sizes))
            value = next(operands) if is_present else None
            if argument.kind is Kind.TENSORS:
                value = packed(value)
            elif argument.kind is Kind.OPTIONAL_TENSORS:
                values = iter(packed(value))
                present = from_attribute(attributes[f"{argument.name}_present"])
                value = [next(values) if is_value else None for is_value in present]
        if argument.keyword:
            if value is not None:
                kwargs[argument.name] = value
        else:
            args.append(value)
    while args and args[-1] is None and definition.positional[len(args) - 1].has_default:
        args.pop()
    return Call(definition.name, tuple(args), kwargs)


_USE = "use"
"""The attribute that numbers equal collectives, one number a use, so that `cse` merges none of them.

So it numbers the gathers of a stored parameter, and the hops of a ring in the backward.
"""


def use_of(op: Operation) -> int | None:
    """The number of the use that an operation brings something for; None for other operations."""
    return int(from_attribute(op.attributes[_USE])) if _USE in op.attributes else None


def set_use(op: Operation, use: int | None) -> None:
    """Number the use that an operation brings something for; None leaves the operation as it is."""
    if use is not None:
        op.attributes[_USE] = to_attribute(use)


_RECOMPUTED = "recomputed"
"""The attribute of an operation of the backward that computes again what the forward did: `cse` must not merge both."""


def is_recomputed(op: Operation) -> bool:
    """Whether the operation computes again, in the backward, what the forward did."""
    return _RECOMPUTED in op.attributes


def mark_recomputed(op: Operation) -> None:
    """Say that the operation computes again what the forward did."""
    op.attributes[_RECOMPUTED] = to_attribute(True)


def copy_attributes(source: Operation, target: Operation) -> None:
    """Give an operation what its copy is to have beside its schema's arguments: the number of its use, the mark of
    what is computed again, the band of its mask."""
    set_use(target, use_of(source))
    if BAND in source.attributes:
        target.attributes[BAND] = source.attributes[BAND]
    if is_recomputed(source):
        mark_recomputed(target)


def pack(values: Sequence[Value], loc: Location) -> Value:
    """Insert a packing cast; returns the tuple value that stands for a list of values."""
    type_ = _tuple_type([v.type for v in values])
    return mlir.Operation.create(PACK, results=[type_], operands=list(values), loc=loc).results[0]


def unpack(value: Value, types: Sequence[Type], loc: Location) -> list[Value]:
    """Insert an unpacking cast; returns the values of a tuple."""
    return list(mlir.Operation.create(PACK, results=list(types), operands=[value], loc=loc).results)


def packed(value: Value) -> list[Value]:
    """The values that `pack` put into a tuple."""
    return list(value.owner.operands)


def is_packing(op: Operation) -> bool:
    """Whether the operation is a packing or unpacking cast."""
    return bool(op.operation.name == PACK)


def made_by(value: Value) -> Operation:
    """The operation that makes a value, also as one of a list."""
    return value.owner.operands[0].owner if is_packing(value.owner) else value.owner


def results_of(op: Operation) -> list[Any]:
    """The results of an operation, a list of values for each `Tensor[]` result (empty if nothing unpacks it)."""
    grouped: list[Any] = []
    for result in op.results:
        if isinstance(result.type, mlir.TupleType):
            casts = [use.owner for use in result.uses]
            grouped.append(list(casts[0].results) if casts else [])
        else:
            grouped.append(result)
    return grouped


def flatten(results: Sequence[Any]) -> list[Value]:
    """The values of `results_of` as a flat list."""
    return [v for r in results for v in (r if isinstance(r, list) else [r])]


def regroup(results: Sequence[Any], items: Sequence[Any]) -> list[Any]:
    """The inverse of `flatten`: `items` in the grouping of `results`."""
    remaining = iter(items)
    return [[next(remaining) for _ in r] if isinstance(r, list) else next(remaining) for r in results]


def tuple_types(type_: Type) -> list[Type]:
    """The types of the values of a list."""
    listed = mlir.TupleType(type_)
    return [listed.get_type(index) for index in range(listed.num_types)]


def _tuple_type(types: Sequence[Type]) -> Type:
    return mlir.TupleType.get_tuple(list(types), context())
