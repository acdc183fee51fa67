"""What the functions of a program say of their slots, and the same derived from their ops.

Types and views are claims (`validate_types.py` checks their form). Where they are read, no op runs. Where they are
verified, each distinct function is walked with meta kernels, and the first difference refutes the program. A type must
be equal. A view must be one, so that memory is never understated; a result that says nothing of a view counts as memory
of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ..program.arguments import dtype_name
from ..program.program import Program
from ..program.records import Function, SlotType
from .values import Future, Opaque, TensorValue, Value


class Types(StrEnum):
    """Where a proof takes types from."""

    DERIVED = "derived"
    """From the ops, by meta kernels; what the program says is compared."""
    STATED = "stated"
    """From the program."""


@dataclass(frozen=True)
class FunctionTypes:
    """What a program says of the slots of one function."""

    types: tuple[SlotType | None, ...]
    views: Mapping[int, int]
    """By slot: the operand in whose memory it lies."""

    @staticmethod
    def of(program: Program, name: str) -> FunctionTypes | None:
        """What the program says; None where it says nothing."""
        function = program.functions[name]
        if not function.types:
            return None
        types = tuple(None if index is None else program.types[index] for index in function.types)
        return FunctionTypes(types, dict(function.views))

    def difference(self, slot: int, value: Value) -> str:
        """How a value differs from what is said of its slot: "said to hold .., but holds .."; empty if it does not."""
        said, found = self.types[slot], type_of(value)
        if said == found:
            return ""
        return f"said to hold {said or 'no tensor'}, but holds {found or 'no tensor'}"


@dataclass
class FoundTypes:
    """The types and views of one function, from walks of it in all contexts."""

    types: dict[int, SlotType | None] = field(default_factory=dict)
    views: dict[int, set[int]] = field(default_factory=dict)
    """By slot: the operands in whose memory it lies in every context."""

    def add_type(self, slot: int, value: Value) -> None:
        """A slot holds a value."""
        self.types[slot] = type_of(value)

    def add_view(self, slot: int, operands: set[int]) -> None:
        """A result in a slot lies in the memory of these operands of its op."""
        self.views[slot] = self.views[slot] & operands if slot in self.views else operands


@dataclass(frozen=True)
class Walk:
    """How a function is walked: what its program states, where types come from, and where what is found is kept."""

    stated: FunctionTypes | None = None
    source: Types = Types.DERIVED
    found: FoundTypes | None = None
    has_states: bool = False
    """Whether an instruction of the program writes into the memory of a state."""

    @property
    def reads(self) -> FunctionTypes | None:
        """What is read in place of running meta kernels; None where they run."""
        return self.stated if self.source is Types.STATED else None


def type_of(value: Value) -> SlotType | None:
    """The type of a value; None for one that is no tensor."""
    match value:
        case TensorValue(meta):
            return SlotType(dtype_name(meta.dtype), meta.shape)
        case Future(result=TensorValue(meta)):
            return SlotType(dtype_name(meta.dtype), meta.shape, is_future=True)
        case Opaque():
            return None


def with_types(program: Program, found: Mapping[str, FoundTypes]) -> Program:
    """The program with what was found: views always, types where it states none."""
    table = {each: index for index, each in enumerate(program.types)}

    def number(type_: SlotType | None) -> int | None:
        return None if type_ is None else table.setdefault(type_, len(table))

    functions: dict[str, Function] = {}
    for name, function in program.functions.items():
        known = found.get(name, FoundTypes())
        types = function.types or tuple(number(known.types.get(slot)) for slot in range(function.slots))
        views = tuple((slot, min(operands)) for slot, operands in sorted(known.views.items()) if operands)
        functions[name] = replace(function, types=types, views=views)
    return replace(program, functions=functions, types=tuple(table))
