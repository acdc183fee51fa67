"""Where a fault is, told from the structure of two modules: the one that a pass leaves, with the fault and without it.

Each value has a key made of its operation, its constants and the keys of its operands. The operation at fault is the
first, in order of execution, whose key the module without the fault does not have, and that a result depends on.
"""

from __future__ import annotations

from collections.abc import Hashable

from stretto.ir.equivalence.flow import Flow, Node, flow_of
from stretto.ir.interpreter.code import decode
from stretto.ir.module import Module


def first_different(right: Module, faulty: Module) -> Node | None:
    """The operation at fault; None where every operation is one of the right module's."""
    keys = _Keys()
    known = set(keys.of(flow_of(decode(right))).values())
    flow = flow_of(decode(faulty))
    found, needed = keys.of(flow), _needed(flow)
    for node in flow.nodes:
        if not node.results or not needed.intersection(node.results):
            continue
        if any(found[number] not in known for number in node.results):
            return node
    return None


class _Keys:
    """Numbers that stand for equal keys."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def of(self, flow: Flow) -> dict[int, int]:
        """By value, the number of its key."""
        numbers = {number: self._number(("argument", index)) for index, number in enumerate(flow.arguments)}
        for node in flow.nodes:
            operands = tuple(numbers.get(number, -1) for number in node.operands)
            for index, number in enumerate(node.results):
                key = (node.step.name, repr(sorted(node.constants.items())), operands, index, node.microbatch)
                numbers[number] = self._number(key)
        return numbers

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _needed(flow: Flow) -> set[int]:
    """The values that results depend on."""
    needed = set(flow.results)
    for node in reversed(flow.nodes):
        if needed.intersection(node.results):
            needed.update(node.operands)
    return needed
