"""Named sizes: what `sizes.json` holds, and how a program is bound to other sizes.

A program is compiled for the sizes of one example and runs as it is. Where it has named sizes, `sizes.json` holds an
expression for each number of `program.json` that depends on them. The expressions stand in a tree of the same shape,
which has nothing else. Binding evaluates them and writes the numbers into a copy, without a compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ..reading.json_fields import Fields, Malformed
from ..reading.sizes import BadExpression, holds, parse, value_of
from .arguments import Json
from .records import Function, Input, Instruction, Output, SlotType

T = TypeVar("T", Input, Output, Instruction, SlotType)
ExpressionTree = Mapping[str, "ExpressionTree | str"]
"""Expressions in the shape of a JSON document: by key, or by list index as text, an expression or a subtree."""


@dataclass(frozen=True)
class NamedSize:
    """A size that differs from call to call."""

    name: str
    example: int
    """The size that the program was compiled for."""
    low: int
    high: int | None
    """The greatest valid size; None: no bound."""

    def to_json(self) -> dict[str, Json]:
        return {"name": self.name, "example": self.example, "low": self.low, "high": self.high}

    @staticmethod
    def from_json(value: object, path: str) -> NamedSize:
        fields = Fields(value, path)
        return NamedSize(
            fields.string("name"), fields.integer("example"), fields.integer("low"), fields.integer_or_null("high")
        )


@dataclass(frozen=True)
class Symbolic:
    """The named sizes of a program, the values for which it is valid, and the numbers that depend on them."""

    names: tuple[NamedSize, ...] = ()
    guards: tuple[str, ...] = ()
    """Conditions under which the program is valid, such as "batch % 2 == 0"."""
    program: ExpressionTree = field(default_factory=dict)
    reference: ExpressionTree = field(default_factory=dict)

    def about(self) -> dict[str, Json]:
        """The names and guards as JSON, without the expressions."""
        return {"names": [name.to_json() for name in self.names], "guards": list(self.guards)}

    def to_json(self) -> dict[str, Json]:
        return {
            **self.about(),
            "program": _copied(self.program), "reference": _copied(self.reference),
        }  # fmt: skip

    @staticmethod
    def from_json(value: object, path: str = "sizes.json") -> Symbolic:
        fields = Fields(value, path)
        symbolic = Symbolic(
            fields.list_of("names", NamedSize.from_json),
            fields.strings("guards"),
            _expression_tree(fields.raw("program"), f"{path}.program"),
            _expression_tree(fields.raw("reference"), f"{path}.reference"),
        )
        try:
            for guard in symbolic.guards:
                parse(guard, condition=True)
        except BadExpression as error:
            raise Malformed(f"{path}.guards: {error}") from None
        return symbolic

    def in_call(self, shapes: Sequence[Sequence[int] | None]) -> dict[str, int]:
        """The sizes of a call, from the shapes of the program's inputs in order (None: not given); others as compiled.

        A name stands for itself in the shape of an input; two dims of one name that differ are for `bind` to refuse.
        """
        sizes = {named.name: named.example for named in self.names}
        for index, record in _subtree(self.program, "inputs").items():
            shape = shapes[int(index)] if index.isdigit() and int(index) < len(shapes) else None
            dims = record.get("shape") if isinstance(record, Mapping) else None
            if shape is None or not isinstance(dims, Mapping):
                continue
            for dim, text in dims.items():
                if isinstance(text, str) and text in sizes and dim.isdigit() and int(dim) < len(shape):
                    sizes[text] = shape[int(dim)]
        return sizes

    def refusal(self, sizes: Mapping[str, int]) -> str:
        """Why the program is not valid for these sizes; empty where it is."""
        for named in self.names:
            if named.name not in sizes:
                return f"'{named.name}' is not given"
            size = sizes[named.name]
            if size < named.low or (named.high is not None and size > named.high):
                return f"{named.name} = {size} is outside of {range_text(named.low, named.high)}"
        unknown = sorted(sizes.keys() - {named.name for named in self.names})
        if unknown:
            return f"it has no size '{unknown[0]}'"
        return next((f"it needs {guard}" for guard in self.guards if not holds(guard, sizes)), "")


def range_text(low: int, high: int | None) -> str:
    """A range as plans and messages write it: "2..64", "2.."."""
    return f"{low}..{'' if high is None else high}"


def bound(tree: Json, expressions: ExpressionTree, sizes: Mapping[str, int], path: str) -> Json:
    """A copy of `tree` with each number that has an expression evaluated for `sizes`.

    Raises Malformed, with a path that starts with `path`, where an expression stands in place of anything but a number.
    """
    return _evaluated(tree, expressions, lambda text: value_of(text, sizes), path)


def bound_inputs(inputs: tuple[Input, ...], expressions: ExpressionTree, sizes: Mapping[str, int]) -> tuple[Input, ...]:
    """The inputs for other sizes."""
    return _bound_records(inputs, _subtree(expressions, "inputs"), sizes, Input.from_json, "program.json.inputs")


def bound_outputs(
    outputs: tuple[Output, ...], expressions: ExpressionTree, sizes: Mapping[str, int]
) -> tuple[Output, ...]:
    """The outputs for other sizes."""
    return _bound_records(outputs, _subtree(expressions, "outputs"), sizes, Output.from_json, "program.json.outputs")


def bound_functions(
    functions: Mapping[str, Function], expressions: ExpressionTree, sizes: Mapping[str, int]
) -> dict[str, Function]:
    """The functions for other sizes; an instruction without expressions stays the same object."""
    bound_by_name = dict(functions)
    for name, subtree in _subtree(expressions, "functions").items():
        path = f"program.json.functions.{name}"
        if name not in functions or isinstance(subtree, str) or subtree.keys() != {"code"}:
            raise Malformed(f"sizes.json: {path}: expected expressions in its code only")
        function = functions[name]
        code = _bound_records(function.code, _subtree(subtree, "code"), sizes, Instruction.from_json, f"{path}.code")
        bound_by_name[name] = replace(function, code=code)
    return bound_by_name


def bound_types(
    types: tuple[SlotType, ...], expressions: ExpressionTree, sizes: Mapping[str, int]
) -> tuple[SlotType, ...]:
    """The types of slots for other sizes."""
    return _bound_records(types, _subtree(expressions, "types"), sizes, SlotType.from_json, "program.json.types")


def _bound_records(
    records: tuple[T, ...],
    expressions: ExpressionTree,
    sizes: Mapping[str, int],
    from_json: Callable[[object, str], T],
    path: str,
) -> tuple[T, ...]:
    bound_records = list(records)
    for key, subtree in expressions.items():
        index = int(key) if key.isdigit() else len(bound_records)
        if index >= len(bound_records) or isinstance(subtree, str):
            raise Malformed(f"sizes.json: {path}[{key}] does not exist in the program")
        bound_records[index] = from_json(
            bound(bound_records[index].to_json(), subtree, sizes, f"{path}[{index}]"), f"{path}[{index}]"
        )
    return tuple(bound_records)


def _subtree(expressions: ExpressionTree, key: str) -> ExpressionTree:
    subtree = expressions.get(key, {})
    if isinstance(subtree, str):
        raise Malformed(f"sizes.json: '{key}': expected a subtree, found an expression")
    return subtree


def _evaluated(tree: Json, expressions: ExpressionTree | str, value: Callable[[str], int], path: str) -> Json:
    if isinstance(expressions, str):
        if not isinstance(tree, int) or isinstance(tree, bool):
            raise Malformed(f"sizes.json: {path}: expected a number in the program, found {tree!r:.60}")
        try:
            return value(expressions)
        except BadExpression as error:
            raise Malformed(f"sizes.json: {path}: {error}") from None
    children: dict[str, Json]
    match tree:
        case dict():
            children = dict(tree)
        case list() | tuple():
            children = {str(index): item for index, item in enumerate(tree)}
        case _:
            children = {}
    for key, subtree in expressions.items():
        if key not in children:
            raise Malformed(f"sizes.json: {path}.{key} does not exist in the program")
        children[key] = _evaluated(children[key], subtree, value, f"{path}.{key}")
    return children if isinstance(tree, dict) else list(children.values())


def _expression_tree(value: object, path: str) -> ExpressionTree:
    tree: dict[str, ExpressionTree | str] = {}
    for key, subtree in Fields({"tree": value}, path).mapping("tree").items():
        if isinstance(subtree, str):
            try:
                parse(subtree)
            except BadExpression as error:
                raise Malformed(f"{path}.{key}: {error}") from None
            tree[key] = subtree
        else:
            tree[key] = _expression_tree(subtree, f"{path}.{key}")
    return tree


def _copied(expressions: ExpressionTree) -> dict[str, Json]:
    return {key: subtree if isinstance(subtree, str) else _copied(subtree) for key, subtree in expressions.items()}
