"""The records of `reference.json`; their fields are its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..reading.json_fields import Fields
from .arguments import Json
from .records import Instruction


@dataclass(frozen=True)
class ReferenceInput:
    """A tensor that the reference takes; its slot is its position in the list of inputs."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    aliases: tuple[str, ...] = ()
    index: int | None = None

    @staticmethod
    def from_json(value: object, path: str) -> ReferenceInput:
        fields = Fields(value, path)
        return ReferenceInput(
            fields.string("name"), fields.string("kind"), fields.integers("shape"), fields.string("dtype"),
            fields.strings("aliases"), fields.integer_or_null("index"),
        )  # fmt: skip


@dataclass(frozen=True)
class ReferenceOutput:
    """A result of the reference: output `index` of the model, or (kind "buffer") the new value of a buffer."""

    kind: str
    name: str
    index: int
    slot: int

    @staticmethod
    def from_json(value: object, path: str) -> ReferenceOutput:
        fields = Fields(value, path)
        kind, name = fields.string_or("kind", "output"), fields.string_or("name", "")
        return ReferenceOutput(kind, name, fields.integer("index"), fields.integer("slot"))


@dataclass(frozen=True)
class Stated:
    """What a check compares, as captured: no pass has touched it."""

    mode: str
    dtype: str
    """The dtype that results are judged in."""
    trained: tuple[str, ...]
    """The parameters that require a gradient."""
    inputs_with_gradients: tuple[str, ...]
    differentiated: tuple[int, ...]
    """Indices of the outputs that have a tangent."""
    ranges: Mapping[str, Json] = field(default_factory=dict)
    """By integer input: {"low": 0, "high": 40, "ignore_index": -100}."""

    def to_json(self) -> dict[str, Json]:
        return {
            "mode": self.mode, "dtype": self.dtype, "trained": list(self.trained),
            "inputs_with_gradients": list(self.inputs_with_gradients), "differentiated": list(self.differentiated),
            "ranges": dict(self.ranges),
        }  # fmt: skip

    @staticmethod
    def from_json(value: object, path: str = "reference.json.stated") -> Stated:
        fields = Fields(value, path)
        return Stated(
            fields.string("mode"), fields.string("dtype"), fields.strings("trained"),
            fields.strings("inputs_with_gradients"), fields.integers("differentiated"),
            fields.mapping("ranges"),  # type: ignore[arg-type]
        )  # fmt: skip


@dataclass(frozen=True)
class FunctionBackward:
    """A backward of a custom autograd function, for the case that some outputs have a gradient."""

    tangents: tuple[int | None, ...]
    """The slot of the gradient of each differentiable output; None where that has none."""
    code: tuple[Instruction, ...]
    gradients: tuple[int | None, ...]
    """The slot of the gradient of each input; None where it gets none."""

    @staticmethod
    def from_json(value: object, path: str) -> FunctionBackward:
        fields = Fields(value, path)
        return FunctionBackward(
            fields.integers_or_nulls("tangents"),
            fields.list_of("code", Instruction.from_json),
            fields.integers_or_nulls("gradients"),
        )


@dataclass(frozen=True)
class CustomFunction:
    """A custom autograd function of the reference: forward and backwards over one frame, which begins with operands."""

    name: str
    slots: int
    operands: int
    inputs: int
    """The first so many operands get gradients."""
    code: tuple[Instruction, ...]
    outputs: tuple[int, ...]
    differentiable: tuple[int, ...]
    """Indices of the outputs that have a gradient."""
    backwards: tuple[FunctionBackward, ...]

    @staticmethod
    def from_json(value: object, path: str) -> CustomFunction:
        fields = Fields(value, path)
        return CustomFunction(
            fields.string("name"), fields.integer("slots"), fields.integer("operands"), fields.integer("inputs"),
            fields.list_of("code", Instruction.from_json), fields.integers("outputs"),
            fields.integers("differentiable"), fields.list_of("backwards", FunctionBackward.from_json),
        )  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """The exported single-device forward, which the program must equal."""

    inputs: tuple[ReferenceInput, ...]
    outputs: tuple[ReferenceOutput, ...]
    slots: int
    code: tuple[Instruction, ...]
    stated: Stated | None = None
    """None in a reference of an older version: a check then believes the program."""
    functions: tuple[CustomFunction, ...] = ()
    """The custom autograd functions that the code calls."""

    def all_code(self) -> Iterator[Instruction]:
        """The instructions, with those of the functions."""
        yield from self.code
        for function in self.functions:
            yield from function.code
            for backward in function.backwards:
                yield from backward.code

    @staticmethod
    def from_json(value: object, path: str = "reference.json") -> Reference:
        fields = Fields(value, path)
        return Reference(
            inputs=fields.list_of("inputs", ReferenceInput.from_json),
            outputs=fields.list_of("outputs", ReferenceOutput.from_json),
            slots=fields.integer("slots"), code=fields.list_of("code", Instruction.from_json),
            stated=fields.optional("stated", Stated.from_json),
            functions=fields.list_of_or("functions", CustomFunction.from_json, ()),
        )  # fmt: skip
