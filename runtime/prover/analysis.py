"""Function summaries, cached over ranks and layers: one for each distinct body and signature."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch

from ..errors import ProgramError
from ..implementations.binding import bindings
from ..program.arguments import DTYPES, dtype_name
from ..program.entries import Entry
from ..program.mesh import RankMesh
from ..program.program import Program
from ..program.records import Output
from ..rank.shards import local_shape
from .events import Event
from .frame import Frame
from .pieces import events_of
from .summary import Signature, Summary, callee_arguments, with_kernel
from .types import FoundTypes, FunctionTypes, Types, Walk, with_types
from .values import Meta, Refuted, Storage, TensorValue, Value

_CONTEXTS = 8
_LEAST_ALLOWED = 5_000
"""Instructions that any proof may walk: some seconds, most of them in meta kernels."""


class Analysis:
    """The analysis of all programs of one mesh: their summaries, and the table of their distinct events."""

    def __init__(self, mesh: RankMesh, types: Types = Types.DERIVED, *, keeps_types: bool = False) -> None:
        self.mesh = mesh
        self.types = types
        self.found: dict[str, FoundTypes] | None = {} if keeps_types else None
        """By function: the types that walks found, where they are kept."""
        self.events: list[Event] = []
        self._numbers: dict[Event, int] = {}
        self._summaries: dict[tuple[str, Signature], Summary] = {}
        self.walked = 0
        """The instructions that were walked: those of each distinct function once for each context."""
        self._allowed = _LEAST_ALLOWED

    def program(self, program: Program, entry: Entry) -> tuple[Summary, Refuted | None]:
        """The summary of an entry of a valid program, and a refutation where a result has a wrong shape.

        Raises Refuted for all other faults.
        """
        main = program.functions[entry.name]
        self._allowed += _CONTEXTS * sum(len(function.code) for function in program.functions.values())
        frame = self._main(program, entry)
        split = len(main.code) if main.backward_at is None else main.backward_at
        frame.run(0, split)
        wrong_output = _keep_results(frame, entry.forward_outputs)
        frame.run(split, len(main.code))
        wrong_gradient = _keep_results(frame, entry.gradients)
        return frame.summary(()), wrong_output or wrong_gradient

    def input_bytes(self, program: Program, entry: Entry) -> int:
        """The bytes of a rank's inputs, tangents included."""
        return sum(value.storage.bytes for value in _inputs(program, entry))

    def largest_before(self, program: Program, entry: Entry, index: int) -> Storage | None:
        """The largest storage that is live in an entry before instruction `index`."""
        frame = self._main(program, entry)
        frame.run(0, index)
        return max(frame.counted, key=lambda storage: storage.bytes, default=None)

    def _main(self, program: Program, entry: Entry) -> Frame:
        inputs = _inputs(program, entry)
        return _ProgramFunctions(self, program).frame(entry.name, inputs, {value.storage for value in inputs})

    def number(self, event: Event) -> int:
        """The index of an event in the table, which has each distinct event once."""
        if event not in self._numbers:
            self._numbers[event] = len(self.events)
            self.events.append(event)
        return self._numbers[event]

    def events_of(self, summary: Summary) -> tuple[int, ...]:
        """The events of an entry and of all that it calls, in order: indices into the table.

        Raises ProgramError E0726.
        """
        return events_of(summary.events, self.number)

    def walk(self, instructions: int) -> None:
        """Count the walk of a function in a context. Raises ProgramError E0726 where there are too many contexts.

        A function is walked once for each distinct context: shapes, and which arguments the caller keeps. Compiled
        programs have one or two of each function; a program made for the purpose could have exponentially many.
        """
        self.walked += instructions
        if self.walked > self._allowed:
            raise ProgramError(
                "E0726",
                "the program cannot be proved: its functions are called with too many different shapes and lifetimes",
                expected=f"at most {_CONTEXTS} contexts of a function, on average",
                help="compile the program again",
            )

    def lookup(self, key: tuple[str, Signature]) -> Summary | None:
        """The cached summary of a body for a signature, or None."""
        return self._summaries.get(key)

    def remember(self, key: tuple[str, Signature], summary: Summary) -> Summary:
        """Cache a summary and return it."""
        self._summaries[key] = summary
        return summary


def with_derived_types(program: Program) -> Program:
    """The program with the types of its slots from meta kernels; those that it states stay. Views are found anew.

    Raises Refuted where the walk finds a fault, and ProgramError as `prove` does. The program must be valid.
    """
    analysis = Analysis(program.mesh, keeps_types=True)
    for entry in program.entries:
        analysis.program(program, entry)
    assert analysis.found is not None, "they are kept"
    return with_types(program, analysis.found)


class _ProgramFunctions:
    """The functions of one program, by name and by content."""

    def __init__(self, analysis: Analysis, program: Program) -> None:
        self._analysis = analysis
        self._program = program
        self._digests: dict[str, str] = {}
        self._bindings = bindings(program, program.manifest.target)
        self._has_states = any(each.into is not None for f in program.functions.values() for each in f.code)

    def frame(self, name: str, values: Sequence[Value], retained: set[Storage]) -> Frame:
        """A frame at the beginning of a function."""
        function = self._program.functions[name]
        found = None if self._analysis.found is None else self._analysis.found.setdefault(name, FoundTypes())
        walk = Walk(FunctionTypes.of(self._program, name), self._analysis.types, found, self._has_states)
        return Frame(name, function, values, retained, self._analysis.mesh, self.summary, self._analysis.number, walk)

    def summary(self, name: str, values: Sequence[Value], retained: set[Storage]) -> Summary:
        """The summary of a function for these arguments; raises Refuted."""
        inside = callee_arguments(values, retained)
        key = (self._digest(name), tuple(inside.signature))
        known = self._analysis.lookup(key)
        if known is not None:
            return known
        frame = self.frame(name, inside.values, inside.retained)
        function = self._program.functions[name]
        self._analysis.walk(len(function.code))
        frame.run(0, len(function.code))
        summary = frame.summary(function.results)
        if name in self._bindings:
            summary = with_kernel(summary, self._bindings[name], self._program.manifest.target)
        return self._analysis.remember(key, summary)

    def _digest(self, name: str) -> str:
        """A digest that is equal for two functions only if they and all their callees are equal."""
        if name not in self._digests:
            function = self._program.functions[name]
            callees = sorted({str(instruction.args[0]) for instruction in function.code if instruction.op == "call"})
            parts = [
                name,
                json.dumps(function.to_json(), sort_keys=True),
                repr(FunctionTypes.of(self._program, name)),
                *(self._digest(callee) for callee in callees),
            ]
            self._digests[name] = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self._digests[name]


def _keep_results(frame: Frame, outputs: Sequence[Output]) -> Refuted | None:
    """Keep results live to the end; a refutation of the first whose shape or dtype differs from the declared one.

    Raises Refuted for a result that is a future.
    """
    frame.keep(output.slot for output in outputs)
    for output in outputs:
        value = frame.slots[output.slot]
        expected = (local_shape(output.shape, output.shards), DTYPES[output.dtype])
        if isinstance(value, TensorValue) and (value.meta.shape, value.meta.dtype) != expected:
            actual, declared = _tensor(value.meta.shape, value.meta.dtype), _tensor(*expected)
            return Refuted(
                "E0716", f"{output.kind} '{output.name}' is {actual} on a rank, but the program declares {declared}",
                value.storage.creator,
            )  # fmt: skip
    return None


def _tensor(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{dtype_name(dtype)} {list(shape)}"


def _inputs(program: Program, entry: Entry) -> list[TensorValue]:
    """The values of a rank's inputs, in the order of its entry's arguments."""
    by_slot = {argument.slot: argument for argument in entry.inputs}
    values: list[TensorValue] = []
    for slot in program.functions[entry.name].arguments:
        argument = by_slot[slot]
        meta = Meta.contiguous(local_shape(argument.shape, argument.shards), DTYPES[argument.dtype])
        values.append(TensorValue(meta, Storage(meta.bytes, name=argument.name)))
    return values
