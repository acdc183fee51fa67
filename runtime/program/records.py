"""The records of a program and their JSON: inputs, outputs, functions, instructions.

`to_json` and `from_json` give the keys of `program.json` and `reference.json`; a field may have another name than its
key. Arguments of instructions are decoded (`Slot`, dtypes, floats), see `arguments.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from ..reading.json_fields import Fields, Malformed
from .arguments import DTYPES, Json, Value, decode, encode, slots_in


@dataclass(frozen=True)
class Shard:
    """Dim `dim` of `extent` elements is sharded over `axes` (outermost first) into chunks of `chunk` elements.

    With `blocks`, the extents of consecutive parts of the dim, a rank has its chunk of each block, one after the other;
    the ranks divide every block.
    """

    dim: int
    axes: tuple[str, ...]
    chunk: int
    extent: int
    blocks: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Json]:
        blocks: dict[str, Json] = {"blocks": list(self.blocks)} if self.blocks else {}
        return {"dim": self.dim, "axes": list(self.axes), "chunk": self.chunk, "extent": self.extent, **blocks}

    @staticmethod
    def from_json(value: object, path: str) -> Shard:
        fields = Fields(value, path)
        return Shard(
            fields.integer("dim"),
            fields.strings("axes"),
            fields.integer("chunk"),
            fields.integer("extent"),
            fields.optional_integers("blocks") or (),
        )


@dataclass(frozen=True)
class Input:
    """A tensor that the program takes.

    `kind` is parameter, buffer, state, constant, input, random (the RNG state) or tangent.
    A state stays with the ranks: a step changes it in place. `shape` is global.
    """

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
    """In a pipeline: the stages that take it (None: all)."""
    stored_over: tuple[str, ...] = ()
    """Of a parameter: the axes that shard it where it is stored alone; it is gathered over them to be computed with."""

    def to_json(self) -> dict[str, Json]:
        return {
            "name": self.name, "kind": self.kind, "aliases": list(self.aliases), "shape": list(self.shape),
            "dtype": self.dtype, "shards": [shard.to_json() for shard in self.shards], "slot": self.slot,
            "requires_grad": self.requires_grad, "index": self.index, **_stages(self.stages),
            **({"stored_over": list(self.stored_over)} if self.stored_over else {}),
        }  # fmt: skip

    @staticmethod
    def from_json(value: object, path: str) -> Input:
        fields = Fields(value, path)
        return Input(
            name=fields.string("name"), kind=fields.string("kind"), shape=fields.integers("shape"),
            dtype=fields.string("dtype"), slot=fields.integer("slot"), shards=fields.list_of("shards", Shard.from_json),
            aliases=fields.strings("aliases"), requires_grad=fields.boolean("requires_grad"),
            index=fields.integer_or_null("index"), stages=fields.optional_integers("stages"),
            stored_over=fields.strings_or("stored_over", ()),
        )  # fmt: skip


@dataclass(frozen=True)
class Output:
    """A tensor that the program returns: `kind` is output, gradient, buffer or state (its new value).

    `shape` is global.

    A gradient has the name of its parameter or input.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    slot: int
    shards: tuple[Shard, ...] = ()
    index: int | None = None
    unreduced_over: tuple[str, ...] = ()
    """The axes over which a gradient is still to be summed by whoever takes it."""
    stages: tuple[int, ...] | None = None
    """In a pipeline: the stages that return it (None: all)."""

    def to_json(self) -> dict[str, Json]:
        return {
            "kind": self.kind, "name": self.name, "index": self.index, "shape": list(self.shape), "dtype": self.dtype,
            "shards": [shard.to_json() for shard in self.shards], "slot": self.slot,
            "unreduced_over": list(self.unreduced_over), **_stages(self.stages),
        }  # fmt: skip

    @staticmethod
    def from_json(value: object, path: str) -> Output:
        fields = Fields(value, path)
        return Output(
            name=fields.string("name"), kind=fields.string("kind"), shape=fields.integers("shape"),
            dtype=fields.string("dtype"), slot=fields.integer("slot"), shards=fields.list_of("shards", Shard.from_json),
            index=fields.integer_or_null("index"), unreduced_over=fields.strings("unreduced_over"),
            stages=fields.optional_integers("stages"),
        )  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One call of `op`: its results go to the slots `out` (None: dropped); the slots `free` are not read after it."""

    op: str
    args: tuple[Value, ...] = ()
    kwargs: Mapping[str, Value] = field(default_factory=dict)
    out: tuple[int | None, ...] = ()
    free: tuple[int, ...] = ()
    loc: int | None = None
    """Index into the program's locations."""
    lane: str = ""
    """The lane that runs it; empty for that of its op (`runtime/lanes/names.py`)."""
    into: int | None = None
    """The slot of a state's value, in whose memory the result is written: nothing reads the old value after it."""

    def reads(self) -> tuple[int, ...]:
        """The slots whose values it reads."""
        return self._reads

    @cached_property
    def _reads(self) -> tuple[int, ...]:
        return tuple(slots_in([*self.args, *self.kwargs.values()]))

    def writes(self) -> tuple[int, ...]:
        """The slots it sets."""
        return tuple(slot for slot in self.out if slot is not None)

    def to_json(self) -> dict[str, Json]:
        kwargs: Json = {key: encode(value) for key, value in self.kwargs.items()}
        fields: dict[str, Json] = {
            "args": encode(self.args), "kwargs": kwargs, "out": list(self.out), "free": list(self.free),
            "location": self.loc, "lane": self.lane or None, "into": self.into,
        }  # fmt: skip
        return {"op": self.op, **{key: value for key, value in fields.items() if value not in ([], {}, None)}}

    @staticmethod
    def from_json(value: object, path: str) -> Instruction:
        fields = Fields(value, path)
        return Instruction(
            op=fields.string("op"), args=fields.list_of_or("args", _argument, ()),
            kwargs={key: _argument(v, f"{path}.kwargs.{key}") for key, v in fields.mapping_or("kwargs", {}).items()},
            out=fields.integers_or_nulls_or("out", ()), free=fields.integers_or("free", ()),
            loc=fields.optional_integer("location"), lane=fields.string_or("lane", ""),
            into=fields.optional_integer("into"),
        )  # fmt: skip


@dataclass(frozen=True)
class SlotType:
    """The tensor in a slot of one rank, or (`is_future`) the one that the future in it gives: local, with padding."""

    dtype: str
    shape: tuple[int, ...]
    is_future: bool = False

    @property
    def bytes(self) -> int:
        """The bytes of its elements."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{'a future of ' if self.is_future else ''}{self.dtype} {list(self.shape)}"

    def to_json(self) -> list[Json]:
        return [self.dtype, list(self.shape), *(["future"] if self.is_future else [])]

    @staticmethod
    def from_json(value: object, path: str) -> SlotType:
        match value:
            case [str(dtype), [*shape], *rest] if rest in ([], ["future"]) and all(type(n) is int for n in shape):
                return SlotType(dtype, tuple(n for n in shape if isinstance(n, int)), bool(rest))
        raise Malformed(f'{path}: expected [dtype, shape] or [dtype, shape, "future"], found {value!r:.60}')


@dataclass(frozen=True)
class Kind:
    """What a function computes as a whole: "attention" of the operands query, key, value, with `causal` true.

    A kind is a claim; the function's body says the same in torch ops. Who checks a program runs the body, who runs it
    may take an implementation of the kind (`implementations/`). So the function is closed: torch ops alone, no
    communication, no calls, no states, and results in memory of their own. docs/kinds.md says what each kind means.
    """

    name: str
    operands: tuple[str, ...]
    """The name of each argument; an optional operand that is not given has none."""
    results: tuple[str, ...]
    attributes: Mapping[str, Value] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        attributes = {key: encode(value) for key, value in self.attributes.items()}
        return {
            "name": self.name, "operands": list(self.operands), "results": list(self.results),
            **({"attributes": attributes} if attributes else {}),
        }  # fmt: skip

    @staticmethod
    def from_json(value: object, path: str) -> Kind:
        fields = Fields(value, path)
        try:
            attributes = {key: decode(v) for key, v in fields.mapping_or("attributes", {}).items()}  # type: ignore[arg-type]
        except ValueError as error:
            raise Malformed(f"{path}.attributes: {error}") from None
        return Kind(fields.string("name"), fields.strings("operands"), fields.strings("results"), attributes)


@dataclass(frozen=True)
class Function:
    """A list of instructions over `slots` slots. In "main" a backward may begin, at the index `backward_at`."""

    slots: int
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    code: tuple[Instruction, ...]
    backward_at: int | None = None
    types: tuple[int | None, ...] = ()
    """For each slot, the index of its type among the program's types; None where it holds no tensor. Empty: not said.

    Types and views are claims: `stretto verify` derives them again from the ops.
    """
    views: tuple[tuple[int, int], ...] = ()
    """(slot, operand) of each torch op whose result in `slot` lies in the memory of its operand."""
    kind: Kind | None = None
    """What the function computes as a whole, where it says so: a runtime may have an implementation of that."""

    def to_json(self) -> dict[str, Json]:
        claims: dict[str, Json] = {"types": list(self.types)} if self.types else {}
        if self.views:
            claims["views"] = [list(pair) for pair in self.views]
        if self.kind is not None:
            claims["kind"] = self.kind.to_json()
        return {
            "slots": self.slots, "arguments": list(self.arguments), "results": list(self.results), **claims,
            "code": [instruction.to_json() for instruction in self.code], "backward_at": self.backward_at,
        }  # fmt: skip

    @staticmethod
    def from_json(value: object, path: str) -> Function:
        fields = Fields(value, path)
        return Function(
            slots=fields.integer("slots"), arguments=fields.integers("arguments"), results=fields.integers("results"),
            code=fields.list_of("code", Instruction.from_json), backward_at=fields.integer_or_null("backward_at"),
            types=fields.integers_or_nulls_or("types", ()), views=fields.list_of_or("views", _pair, ()),
            kind=fields.optional("kind", Kind.from_json),
        )  # fmt: skip


@dataclass(frozen=True)
class Pipeline:
    """The stages of a pipelined program: ranks at coordinate k on `axis` begin in the function `entries[k]`.

    An entry runs forward and backward of all microbatches and returns gradients; it has no separate backward. Its
    arguments are the program's inputs that its stage takes, its results the outputs that its stage returns, both in the
    program's order. The slots in the program's own inputs and outputs are not used.
    """

    axis: str
    entries: tuple[str, ...]
    microbatches: int
    separate_microbatches: bool = False
    """Whether the step is the mean over microbatches, each computed as a batch of its own.

    The reference then computes one microbatch.
    """
    nonlinear: tuple[str, ...] = ()
    """Custom autograd functions whose backward is not linear in its gradient: the step's tangent is the forward's."""

    def to_json(self) -> dict[str, Json]:
        more: dict[str, Json] = {"separate_microbatches": True} if self.separate_microbatches else {}
        if self.nonlinear:
            more["nonlinear"] = list(self.nonlinear)
        return {"axis": self.axis, "entries": list(self.entries), "microbatches": self.microbatches, **more}

    @staticmethod
    def from_json(value: object, path: str = "program.json.pipeline") -> Pipeline:
        fields = Fields(value, path)
        return Pipeline(
            fields.string("axis"),
            fields.strings("entries"),
            fields.integer("microbatches"),
            fields.boolean_or("separate_microbatches", False),
            fields.list_of_or("nonlinear", lambda name, _path: str(name), ()),
        )


@dataclass(frozen=True)
class Location:
    """The place in the user's sources of an instruction; `module` is a path such as "layers.0.mlp", or empty."""

    file: str
    line: int
    module: str = ""

    @staticmethod
    def from_json(value: object, path: str) -> Location:
        match value:
            case [str(file), int(line), str(module)]:
                return Location(file, line, module)
        raise Malformed(f"{path}: expected [file, line, module path], found {value!r:.60}")


def _stages(stages: tuple[int, ...] | None) -> dict[str, Json]:
    return {} if stages is None else {"stages": list(stages)}


def _pair(value: object, path: str) -> tuple[int, int]:
    match value:
        case [int(first), int(second)]:
            return first, second
    raise Malformed(f"{path}: expected two slots, found {value!r:.60}")


def _argument(value: object, path: str) -> Value:
    try:
        return decode(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise Malformed(f"{path}: {error}") from None
