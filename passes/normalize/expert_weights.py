"""Products by expert, by the choice of experts that they share, and which parameters their weights are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ...ir.bindings import Operation, Value
from ...ir.module import Module, argument_records, callee, entry, name_of, operations
from ...ir.operations import read
from ..rewriting import producer
from .idioms.expert_rows import LINEAR, OUTER

FOLLOWED = ("aten.transpose.int", "aten.t.default", "aten._to_copy.default", "aten.unsqueeze.default", "comm.reshard")
"""Operations through which a weight is still the parameter."""
_JOINED = ("aten.stack.default", "aten.cat.default")
"""Operations that make one weight of the parameters of several experts."""


def expert_choices(function: Operation) -> dict[Value, tuple[list[Operation], list[Value]]]:
    """By the experts of rows, in order: the products of a function with their matrices, and these weights."""
    routes: dict[Value, tuple[list[Operation], list[Value]]] = {}
    for op in operations(function):
        call = read(op)
        if call is not None and call.name in (LINEAR, OUTER):
            products, weights = routes.setdefault(call.args[2], ([], []))
            products.append(op)
            weights.append(call.args[1] if call.name == LINEAR else call.args[3])
    return routes


@dataclass
class WeightNames:
    """The names of the parameters that values of functions stand for."""

    module: Module
    parameters: dict[str, Value] = field(default_factory=dict)
    """Main's arguments, by every name of theirs."""

    def __post_init__(self) -> None:
        main = self.module.functions()["main"]
        self._of_main: dict[Value, list[str]] = {}
        for argument, record in zip(entry(main).arguments, argument_records(main), strict=True):
            if record.get("kind") == "parameter":
                self._of_main[argument] = [record["name"], *record.get("aliases", ())]
                self.parameters.update(dict.fromkeys(self._of_main[argument], argument))
        self._calls: dict[str, list[Operation]] = {}
        for op in operations(main):
            if (name := callee(op)) is not None:
                self._calls.setdefault(name, []).append(op)

    def of(self, value: Value, function: Operation) -> Iterator[str]:
        """The names of the parameters that a value is, at every call of its function."""
        while (made := producer(value)) is not None and made.name in FOLLOWED:
            value = made.args[0]
        if made is not None and made.name in _JOINED:
            for part in made.args[0]:
                yield from self.of(part, function)
            return
        if name_of(function) == "main":
            yield from self._of_main.get(value, ())
            return
        arguments = list(entry(function).arguments)
        position = arguments.index(value) if value in arguments else len(arguments)
        for call in self._calls.get(name_of(function), ()):
            if position < len(call.operands):
                yield from self._of_main.get(call.operands[position], ())
