"""The records a program is made of, and their JSON: inputs, outputs, functions, instructions.

The names of their fields are the keys of `program.json` and `reference.json`. Arguments are held decoded (`Slot`,
dtypes, floats), see `arguments.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .arguments import Json, Value, decode, encode, slots_in
from .json_fields import Fields, Malformed


@dataclass(frozen=True)
class Shard:
    """Dim `dim` of `extent` elements is cut over `axes` (outermost first) into chunks of `chunk` elements."""

    dim: int
    axes: tuple[str, ...]
    chunk: int
    extent: int

    def to_json(self) -> dict[str, Json]:
        return {"dim": self.dim, "axes": list(self.axes), "chunk": self.chunk, "extent": self.extent}

    @staticmethod
    def from_json(value: object, path: str) -> Shard:
        fields = Fields(value, path)
        return Shard(fields.whole("dim"), fields.texts("axes"), fields.whole("chunk"), fields.whole("extent"))


@dataclass(frozen=True)
class Input:
    """A tensor the program takes: `kind` is parameter, buffer, constant, input or tangent; `shape` is global."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    slot: int
    shards: tuple[Shard, ...] = ()
    aliases: tuple[str, ...] = ()
    requires_grad: bool = False
    index: int | None = None
    """Position among the flattened user inputs, or the index of the output that a tangent belongs to."""
    stages: tuple[int, ...] | None = None
    """In a pipeline: the coordinates on its axis whose ranks take it (None: all)."""

    def to_json(self) -> dict[str, Json]:
        return {
            "name": self.name, "kind": self.kind, "aliases": list(self.aliases), "shape": list(self.shape),
            "dtype": self.dtype, "shards": [shard.to_json() for shard in self.shards], "slot": self.slot,
            "requires_grad": self.requires_grad, "index": self.index, **_stages(self.stages),
        }  # fmt: skip

    @staticmethod
    def from_json(value: object, path: str) -> Input:
        fields = Fields(value, path)
        return Input(
            name=fields.text("name"), kind=fields.text("kind"), shape=fields.wholes("shape"),
            dtype=fields.text("dtype"), slot=fields.whole("slot"), shards=fields.each("shards", Shard.from_json),
            aliases=fields.texts("aliases"), requires_grad=fields.flag("requires_grad"),
            index=fields.whole_or_none("index"), stages=fields.wholes_where_given("stages"),
        )  # fmt: skip


@dataclass(frozen=True)
class Output:
    """A tensor the program gives: `kind` is output, gradient (named as its parameter) or buffer (its new value)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    slot: int
    shards: tuple[Shard, ...] = ()
    index: int | None = None
    addends: tuple[str, ...] = ()
    """The axes over which the tensors of the ranks are addends: whoever takes them has to sum them."""
    stages: tuple[int, ...] | None = None
    """In a pipeline: the coordinates on its axis whose ranks give it (None: all)."""

    def to_json(self) -> dict[str, Json]:
        return {
            "kind": self.kind, "name": self.name, "index": self.index, "shape": list(self.shape), "dtype": self.dtype,
            "shards": [shard.to_json() for shard in self.shards], "slot": self.slot, "addends": list(self.addends),
            **_stages(self.stages),
        }  # fmt: skip

    @staticmethod
    def from_json(value: object, path: str) -> Output:
        fields = Fields(value, path)
        return Output(
            name=fields.text("name"), kind=fields.text("kind"), shape=fields.wholes("shape"),
            dtype=fields.text("dtype"), slot=fields.whole("slot"), shards=fields.each("shards", Shard.from_json),
            index=fields.whole_or_none("index"), addends=fields.texts("addends"),
            stages=fields.wholes_where_given("stages"),
        )  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One call of `op`: `out` are the slots its results go to (None: dropped), `free` those not needed after it."""

    op: str
    args: tuple[Value, ...] = ()
    kwargs: Mapping[str, Value] = field(default_factory=dict)
    out: tuple[int | None, ...] = ()
    free: tuple[int, ...] = ()
    loc: int | None = None
    """Index into the program's locations."""

    def reads(self) -> tuple[int, ...]:
        """The slots whose values it uses."""
        return tuple(slots_in([*self.args, *self.kwargs.values()]))

    def writes(self) -> tuple[int, ...]:
        """The slots it sets."""
        return tuple(slot for slot in self.out if slot is not None)

    def to_json(self) -> dict[str, Json]:
        kwargs = {key: encode(each) for key, each in self.kwargs.items()}
        return {
            "op": self.op, "args": encode(self.args), "kwargs": kwargs,
            "out": list(self.out), "free": list(self.free), "loc": self.loc,
        }  # fmt: skip

    @staticmethod
    def from_json(value: object, path: str) -> Instruction:
        fields = Fields(value, path)
        return Instruction(
            op=fields.text("op"), args=fields.each("args", _argument),
            kwargs={key: _argument(each, f"{path}.kwargs.{key}") for key, each in fields.mapping("kwargs").items()},
            out=fields.wholes_or_none("out"), free=fields.wholes("free"), loc=fields.whole_or_none("loc"),
        )  # fmt: skip


@dataclass(frozen=True)
class Function:
    """A list of instructions over `slots` slots. Only "main" may have `backward_at`: where its backward begins."""

    slots: int
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    code: tuple[Instruction, ...]
    backward_at: int | None = None

    def to_json(self) -> dict[str, Json]:
        return {
            "slots": self.slots, "arguments": list(self.arguments), "results": list(self.results),
            "code": [each.to_json() for each in self.code], "backward_at": self.backward_at,
        }  # fmt: skip

    @staticmethod
    def from_json(value: object, path: str) -> Function:
        fields = Fields(value, path)
        return Function(
            slots=fields.whole("slots"), arguments=fields.wholes("arguments"), results=fields.wholes("results"),
            code=fields.each("code", Instruction.from_json), backward_at=fields.whole_or_none("backward_at"),
        )  # fmt: skip


@dataclass(frozen=True)
class Pipeline:
    """Ranks take turns: those at coordinate k on `axis` begin in the function `entries[k]`.

    An entry has no backward of its own: it runs forward and backward of all microbatches, and gives gradients. Its
    arguments are the program's inputs that it takes, its results the outputs that it gives, both in the program's
    order; the slots that inputs and outputs name themselves mean nothing.
    """

    axis: str
    entries: tuple[str, ...]
    microbatches: int
    alone: bool = False
    """Whether the step is the mean of microbatches that are computed alone; the reference is of one of them then."""

    def to_json(self) -> dict[str, Json]:
        alone: dict[str, Json] = {"alone": True} if self.alone else {}
        return {"axis": self.axis, "entries": list(self.entries), "microbatches": self.microbatches, **alone}

    @staticmethod
    def from_json(value: object, path: str = "program.json.pipeline") -> Pipeline:
        fields = Fields(value, path)
        return Pipeline(
            fields.text("axis"), fields.texts("entries"), fields.whole("microbatches"), fields.flag_or("alone", False)
        )


@dataclass(frozen=True)
class Location:
    """Where in the user's sources an instruction comes from; `module` is a path such as "layers.0.mlp", or empty."""

    file: str
    line: int
    module: str = ""

    @staticmethod
    def from_json(value: object, path: str) -> Location:
        match value:
            case [str(file), int(line), str(module)]:
                return Location(file, line, module)
        raise Malformed(f"{path}: expected [file, line, module path], found {value!r:.60}")


@dataclass(frozen=True)
class ReferenceInput:
    """A tensor the reference takes; it stands in the slot of its position in the list."""

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
            fields.text("name"), fields.text("kind"), fields.wholes("shape"), fields.text("dtype"),
            fields.texts("aliases"), fields.whole_or_none("index"),
        )  # fmt: skip


@dataclass(frozen=True)
class ReferenceOutput:
    """What a slot holds at the end: output `index` of the model, or (kind "buffer") the new value of a buffer."""

    kind: str
    name: str
    index: int
    slot: int

    @staticmethod
    def from_json(value: object, path: str) -> ReferenceOutput:
        fields = Fields(value, path)
        kind, name = fields.text_or("kind", "output"), fields.text_or("name", "")
        return ReferenceOutput(kind, name, fields.whole("index"), fields.whole("slot"))


@dataclass(frozen=True)
class Reference:
    """The exported single-device forward: what the program must compute."""

    inputs: tuple[ReferenceInput, ...]
    outputs: tuple[ReferenceOutput, ...]
    slots: int
    code: tuple[Instruction, ...]

    @staticmethod
    def from_json(value: object, path: str = "reference.json") -> Reference:
        fields = Fields(value, path)
        return Reference(
            inputs=fields.each("inputs", ReferenceInput.from_json),
            outputs=fields.each("outputs", ReferenceOutput.from_json),
            slots=fields.whole("slots"), code=fields.each("code", Instruction.from_json),
        )  # fmt: skip


def _stages(stages: tuple[int, ...] | None) -> dict[str, Json]:
    return {} if stages is None else {"stages": list(stages)}


def _argument(value: object, path: str) -> Value:
    try:
        return decode(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise Malformed(f"{path}: {error}") from None
