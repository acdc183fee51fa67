"""A traced run of a module: which operation made each value, and the counterparts of another module's operations."""

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
from ...ir.locations import Origin
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
        """Whether all operations ran; then an error can only be about the results."""
        return all(number in self.trace.fingerprints for number in self.trace.flow.results)

    def place(self, node: Node) -> Place:
        """The place of an operation."""
        return self.places.place(node.function, node.path[-1])

    def type_text(self, number: int) -> str:
        """The type of a value."""
        type_ = self.trace.flow.types[number]
        return "a list" if type_ is None else str(to_mlir(type_))

    def maker_text(self, number: int) -> str:
        """The operation with its place, or the argument, that a value comes from."""
        maker = self.trace.flow.makers.get(number)
        if maker is not None:
            return str(self.place(maker))
        index = self.trace.flow.arguments.index(number)
        record = self.code.arguments[index].record
        return f"{record.get('kind', 'argument')} {record.get('name', index)}"

    def maker(self, number: int) -> Node | None:
        """The operation that made a value, through waits (to the start) and receives (to the value that was sent)."""
        maker = self.trace.flow.makers.get(number)
        if maker is not None and maker.step.name == "comm.wait":
            maker = self.trace.flow.makers.get(maker.operands[0])
        if maker is not None and maker.step.name.startswith("comm.receive") and maker.operands:
            return self.maker(maker.operands[0])
        return maker

    def results_through_wait(self, node: Node) -> Sequence[int]:
        """An operation's results; those of a started collective are the results of its wait."""
        return self._waited.get(node.path, node.results)

    def counterpart(self, other: TracedModule, node: Node) -> Node | None:
        """The operation here that corresponds to one of another module: same name, same origin, same position."""
        index, key = other._positions[node.path]
        candidates = self._by_key.get((key, node.microbatch)) or self._by_key.get((key, None), [])
        return candidates[index] if index < len(candidates) else None

    def has_like(self, node: Node) -> bool:
        """Whether an operation here has the name and the origin of one of another module."""
        return _key(node) in self._keys

    @cached_property
    def _keys(self) -> set[Key]:
        return {key for key, _ in self._by_key}

    @cached_property
    def _waited(self) -> dict[Path, Sequence[int]]:
        waits = [node for node in self.trace.flow.nodes if node.step.name == "comm.wait"]
        starts = ((self.trace.flow.makers.get(wait.operands[0]), wait) for wait in waits)
        return {start.path: wait.results for start, wait in starts if start is not None}

    @cached_property
    def _by_key(self) -> dict[tuple[Key, int | None], list[Node]]:
        """Operations by key and microbatch."""
        nodes: dict[tuple[Key, int | None], list[Node]] = defaultdict(list)
        for node in self.trace.flow.nodes:
            nodes[_key(node), node.microbatch].append(node)
        return dict(nodes)

    @cached_property
    def _positions(self) -> dict[Path, tuple[int, Key]]:
        return {node.path: (index, key) for (key, _), nodes in self._by_key.items() for index, node in enumerate(nodes)}

    def result_types(self, node: Node) -> tuple[str, ...]:
        """The types of an operation's results."""
        return tuple(self.type_text(number) for number in node.results)


def same_origin(node: Node, other: Node) -> bool:
    """Whether two operations come from the same line of the same module, or of equal layers."""
    return _origin(node) == _origin(other)


def _key(node: Node) -> Key:
    """What passes keep of an operation: name and origin."""
    return synchronous(node.step.name), _origin(node)


def _origin(node: Node) -> Origin:
    """Where an operation comes from, without layer numbers, which folding removes."""
    return replace(node.step.origin, module_path=family(node.step.origin.module_path))
