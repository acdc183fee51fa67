"""Summaries of functions, each made once for each distinct body and signature, whichever rank or layer asks."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from ..program.arguments import DTYPES, dtype_name
from ..program.entries import Entry
from ..program.mesh import RankMesh
from ..program.program import Program
from ..program.records import Output
from ..rank.shards import local_shape
from .events import Event
from .frame import Frame
from .summary import Signature, Summary, entering
from .values import Meta, Refuted, Storage, TensorValue, Value


class Analysis:
    """All programs of one mesh: their summaries, and the table of the collectives and messages in them."""

    def __init__(self, mesh: RankMesh) -> None:
        self.mesh = mesh
        self.events: list[Event] = []
        self._numbers: dict[Event, int] = {}
        self._summaries: dict[tuple[str, Signature], Summary] = {}

    def program(self, program: Program, entry: Entry) -> tuple[Summary, Refuted | None]:
        """The summary of an entry of a sound program, and what is wrong with the shape of a result; raises Refuted."""
        main = program.functions[entry.name]
        frame = self._main(program, entry)
        split = len(main.code) if main.backward_at is None else main.backward_at
        frame.run(0, split)
        early = _take(frame, entry.results)
        frame.run(split, len(main.code))
        late = _take(frame, entry.gradients)
        return frame.summary(()), early or late

    def input_bytes(self, program: Program, entry: Entry) -> int:
        """What a rank's inputs take, tangents included."""
        return sum(value.storage.bytes for value in _inputs(program, entry))

    def largest_before(self, program: Program, entry: Entry, index: int) -> Storage | None:
        """The largest storage that is live in an entry before instruction `index`."""
        frame = self._main(program, entry)
        frame.run(0, index)
        return max(frame.counted, key=lambda storage: storage.bytes, default=None)

    def _main(self, program: Program, entry: Entry) -> Frame:
        inputs = _inputs(program, entry)
        return _Bodies(self, program).frame(entry.name, inputs, {value.storage for value in inputs})

    def number(self, event: Event) -> int:
        """The number of a collective or message in the table."""
        if event not in self._numbers:
            self._numbers[event] = len(self.events)
            self.events.append(event)
        return self._numbers[event]

    def known(self, key: tuple[str, Signature]) -> Summary | None:
        """The summary of a body for a signature, if it was made."""
        return self._summaries.get(key)

    def keep(self, key: tuple[str, Signature], summary: Summary) -> Summary:
        """Remember a summary."""
        self._summaries[key] = summary
        return summary


class _Bodies:
    """The functions of one program, by name and by what stands in them."""

    def __init__(self, analysis: Analysis, program: Program) -> None:
        self._analysis = analysis
        self._program = program
        self._texts: dict[str, str] = {}

    def frame(self, name: str, values: Sequence[Value], held: set[Storage]) -> Frame:
        """A frame at the beginning of a function."""
        function = self._program.functions[name]
        return Frame(name, function, values, held, self._analysis.mesh, self.summary, self._analysis.number)

    def summary(self, name: str, values: Sequence[Value], held: set[Storage]) -> Summary:
        """The summary of a function for these arguments; raises Refuted."""
        entry = entering(values, held)
        key = (self._text(name), tuple(entry.signature))
        known = self._analysis.known(key)
        if known is not None:
            return known
        frame = self.frame(name, entry.values, entry.held)
        function = self._program.functions[name]
        frame.run(0, len(function.code))
        return self._analysis.keep(key, frame.summary(function.results))

    def _text(self, name: str) -> str:
        """A text that two functions share only when they and all that they call are the same."""
        if name not in self._texts:
            function = self._program.functions[name]
            callees = sorted({str(each.args[0]) for each in function.code if each.op == "call"})
            parts = [name, json.dumps(function.to_json(), sort_keys=True), *(self._text(callee) for callee in callees)]
            self._texts[name] = json.dumps(parts)
        return self._texts[name]


def _take(frame: Frame, outputs: Sequence[Output]) -> Refuted | None:
    """Keep results to the end; the first that is not as the program says. Raises Refuted for a future."""
    frame.hold(each.slot for each in outputs)
    for each in outputs:
        value = frame.slots[each.slot]
        wanted = (local_shape(each.shape, each.shards), DTYPES[each.dtype])
        if isinstance(value, TensorValue) and (value.meta.shape, value.meta.dtype) != wanted:
            found, said = _tensor(value.meta.shape, value.meta.dtype), _tensor(*wanted)
            return Refuted(
                "E0716", f"{each.kind} '{each.name}' is {found} on a rank, but the program says {said}",
                value.storage.made,
            )  # fmt: skip
    return None


def _tensor(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{dtype_name(dtype)} {list(shape)}"


def _inputs(program: Program, entry: Entry) -> list[TensorValue]:
    """What a rank is given, in the order of its entry's arguments."""
    by_slot = {each.slot: each for each in entry.inputs}
    values: list[TensorValue] = []
    for slot in program.functions[entry.name].arguments:
        each = by_slot[slot]
        meta = Meta.contiguous(local_shape(each.shape, each.shards), DTYPES[each.dtype])
        values.append(TensorValue(meta, Storage(meta.bytes, name=each.name)))
    return values
