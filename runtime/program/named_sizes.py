"""Which numbers of a program are sizes: what `sizes.json` says, and how numbers are put in their places.

A program is made for the sizes of one example, and runs as it is. Where it has named sizes, `sizes.json` says which of
its numbers follow from them, by a tree of the shape of `program.json` that has an expression in place of each such
number, and nothing else. So a program for other sizes is made by writing numbers, without a compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from .arguments import Json
from .json_fields import Fields, Malformed
from .records import Function, Input, Instruction, Output
from .sizes import BadExpression, holds, read, value_of

T = TypeVar("T", Input, Output, Instruction)
Places = Mapping[str, "Places | str"]
"""By key, or by the index in a list as text: an expression, or the places further inside."""


@dataclass(frozen=True)
class NamedSize:
    """A size that differs from call to call."""

    name: str
    example: int
    """What it is in the program as it stands."""
    low: int
    high: int | None
    """The greatest it may be; None: no bound."""

    def to_json(self) -> dict[str, Json]:
        return {"name": self.name, "example": self.example, "low": self.low, "high": self.high}

    @staticmethod
    def from_json(value: object, path: str) -> NamedSize:
        fields = Fields(value, path)
        return NamedSize(
            fields.text("name"), fields.whole("example"), fields.whole("low"), fields.whole_or_none("high")
        )


@dataclass(frozen=True)
class Symbolic:
    """The named sizes of a program, for which of their values it holds, and where they are."""

    names: tuple[NamedSize, ...] = ()
    guards: tuple[str, ...] = ()
    """Conditions; where one is false, the model or its compilation is another than this one."""
    program: Places = field(default_factory=dict)
    reference: Places = field(default_factory=dict)

    def about(self) -> dict[str, Json]:
        """The names and the conditions, without the places."""
        return {"names": [each.to_json() for each in self.names], "guards": list(self.guards)}

    def to_json(self) -> dict[str, Json]:
        return {
            **self.about(),
            "program": _copied(self.program), "reference": _copied(self.reference),
        }  # fmt: skip

    @staticmethod
    def from_json(value: object, path: str = "sizes.json") -> Symbolic:
        fields = Fields(value, path)
        found = Symbolic(
            fields.each("names", NamedSize.from_json),
            fields.texts("guards"),
            _places(fields.raw("program"), f"{path}.program"),
            _places(fields.raw("reference"), f"{path}.reference"),
        )
        try:
            for guard in found.guards:
                read(guard, condition=True)
        except BadExpression as error:
            raise Malformed(f"{path}.guards: {error}") from None
        return found

    def refusal(self, sizes: Mapping[str, int]) -> str:
        """Why these sizes need another program; empty where they do not."""
        for each in self.names:
            if each.name not in sizes:
                return f"'{each.name}' is not given"
            size = sizes[each.name]
            if size < each.low or (each.high is not None and size > each.high):
                return f"{each.name} = {size} is outside of {range_text(each.low, each.high)}"
        unknown = sorted(sizes.keys() - {each.name for each in self.names})
        if unknown:
            return f"it has no size '{unknown[0]}'"
        return next((f"it needs {guard}" for guard in self.guards if not holds(guard, sizes)), "")


def range_text(low: int, high: int | None) -> str:
    """A range as a person says it: "2..64"."""
    return f"{low}..{'' if high is None else high}"


def bound(tree: Json, places: Places, sizes: Mapping[str, int], path: str) -> Json:
    """A copy of `tree` with the numbers at `places` for other sizes; raises Malformed where there is no number."""
    return _set(tree, places, lambda text: value_of(text, sizes), path)


def bound_inputs(inputs: tuple[Input, ...], places: Places, sizes: Mapping[str, int]) -> tuple[Input, ...]:
    """The inputs for other sizes."""
    return _bound_each(inputs, _inside(places, "inputs"), sizes, Input.from_json, "program.json.inputs")


def bound_outputs(outputs: tuple[Output, ...], places: Places, sizes: Mapping[str, int]) -> tuple[Output, ...]:
    """The outputs for other sizes."""
    return _bound_each(outputs, _inside(places, "outputs"), sizes, Output.from_json, "program.json.outputs")


def bound_functions(functions: Mapping[str, Function], places: Places, sizes: Mapping[str, int]) -> dict[str, Function]:
    """The functions for other sizes; an instruction without one is the very same."""
    found = dict(functions)
    for name, inner in _inside(places, "functions").items():
        path = f"program.json.functions.{name}"
        if name not in functions or isinstance(inner, str) or inner.keys() != {"code"}:
            raise Malformed(f"sizes.json: {path} has no sizes but in its code")
        was = functions[name]
        code = _bound_each(was.code, _inside(inner, "code"), sizes, Instruction.from_json, f"{path}.code")
        found[name] = Function(was.slots, was.arguments, was.results, code, was.backward_at)
    return found


def _bound_each(
    records: tuple[T, ...],
    places: Places,
    sizes: Mapping[str, int],
    from_json: Callable[[object, str], T],
    path: str,
) -> tuple[T, ...]:
    found = list(records)
    for key, inner in places.items():
        at = int(key) if key.isdigit() else len(found)
        if at >= len(found) or isinstance(inner, str):
            raise Malformed(f"sizes.json: {path}[{key}] is not there")
        found[at] = from_json(bound(found[at].to_json(), inner, sizes, f"{path}[{at}]"), f"{path}[{at}]")
    return tuple(found)


def _inside(places: Places, key: str) -> Places:
    inner = places.get(key, {})
    if isinstance(inner, str):
        raise Malformed(f"sizes.json: '{key}' is no number")
    return inner


def _set(tree: Json, places: Places | str, value: Callable[[str], int], path: str) -> Json:
    if isinstance(places, str):
        if not isinstance(tree, int) or isinstance(tree, bool):
            raise Malformed(f"sizes.json: {path} is no number")
        try:
            return value(places)
        except BadExpression as error:
            raise Malformed(f"sizes.json: {path}: {error}") from None
    keys: dict[str, Json]
    match tree:
        case dict():
            keys = dict(tree)
        case list() | tuple():
            keys = {str(at): each for at, each in enumerate(tree)}
        case _:
            keys = {}
    for key, inner in places.items():
        if key not in keys:
            raise Malformed(f"sizes.json: {path}.{key} is not there")
        keys[key] = _set(keys[key], inner, value, f"{path}.{key}")
    return keys if isinstance(tree, dict) else list(keys.values())


def _places(value: object, path: str) -> Places:
    found: dict[str, Places | str] = {}
    for key, inner in Fields({"here": value}, path).mapping("here").items():
        if isinstance(inner, str):
            try:
                read(inner)
            except BadExpression as error:
                raise Malformed(f"{path}.{key}: {error}") from None
            found[key] = inner
        else:
            found[key] = _places(inner, f"{path}.{key}")
    return found


def _copied(places: Places) -> dict[str, Json]:
    return {key: inner if isinstance(inner, str) else _copied(inner) for key, inner in places.items()}
