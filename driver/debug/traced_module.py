"""A module that was run with an observer: who made which value, and which operation of another module is the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from ...ir.collectives import synchronous
from ...ir.equivalence.flow import Node
from ...ir.equivalence.trace import Trace
from ...ir.interpreter.code import decode
from ...ir.interpreter.observing import Path
from ...ir.interpreter.ranks import grid_of
from ...ir.module import Module
from ...ir.types import to_mlir
from ..text.layer_names import family
from .op_places import Place, Places

Key = tuple[object, ...]


class TracedModule:
    """A module, and the trace of a run of it."""

    def __init__(self, module: Module, inputs: Sequence[Tensor]) -> None:
        self.code = decode(module)
        self.places = Places(module)
        self.trace = Trace.of(self.code, grid_of(self.code), inputs)

    @property
    def is_complete(self) -> bool:
        """Whether the run came to its end, where only its results can have been refused."""
        return all(number in self.trace.fingerprints for number in self.trace.flow.results)

    def place(self, node: Node) -> Place:
        """Where an operation stands."""
        return self.places.of(node.function, node.path[-1])

    def type_text(self, number: int) -> str:
        """The type of a value."""
        type_ = self.trace.flow.types[number]
        return "a list" if type_ is None else str(to_mlir(type_))

    def maker_text(self, number: int) -> str:
        """What a value is from: an operation and its place, or an argument."""
        maker = self.trace.flow.makers.get(number)
        if maker is not None:
            return str(self.place(maker))
        at = self.trace.flow.arguments.index(number)
        record = self.code.arguments[at].record
        return f"{record.get('kind', 'argument')} {record.get('name', at)}"

    def maker(self, number: int) -> Node | None:
        """The operation that a value is from: of what was waited for the start, of what was received what was sent."""
        maker = self.trace.flow.makers.get(number)
        if maker is not None and maker.step.name == "comm.wait":
            maker = self.trace.flow.makers.get(maker.operands[0])
        if maker is not None and maker.step.name.startswith("comm.receive") and maker.operands:
            return self.maker(maker.operands[0])
        return maker

    def given(self, node: Node) -> Sequence[int]:
        """What an operation gives: a started collective through its wait."""
        return self._delivered.get(node.path, node.results)

    def twin(self, other: TracedModule, node: Node) -> Node | None:
        """The operation here that has the name and origin of one of another module, and as many like it before it."""
        at, key = other._numbers[node.path]
        alike = self._alike[key, node.microbatch] or self._alike[key, None]
        return alike[at] if at < len(alike) else None

    @cached_property
    def _delivered(self) -> dict[Path, Sequence[int]]:
        waits = [node for node in self.trace.flow.nodes if node.step.name == "comm.wait"]
        starts = ((self.trace.flow.makers.get(wait.operands[0]), wait) for wait in waits)
        return {start.path: wait.results for start, wait in starts if start is not None}

    @cached_property
    def _alike(self) -> dict[tuple[Key, int | None], list[Node]]:
        """By what operations keep, and the microbatch that they are done for."""
        found: dict[tuple[Key, int | None], list[Node]] = defaultdict(list)
        for node in self.trace.flow.nodes:
            found[_key(node), node.microbatch].append(node)
        return found

    @cached_property
    def _numbers(self) -> dict[Path, tuple[int, Key]]:
        return {node.path: (at, key) for (key, _), nodes in self._alike.items() for at, node in enumerate(nodes)}

    def result_types(self, node: Node) -> tuple[str, ...]:
        """The types of what an operation gives."""
        return tuple(self.type_text(number) for number in node.results)


def _key(node: Node) -> Key:
    """What an operation keeps through passes; layers that a fold made one have no numbers."""
    origin = node.step.origin
    return synchronous(node.step.name), replace(origin, module_path=family(origin.module_path))
