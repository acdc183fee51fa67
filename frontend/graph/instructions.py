"""The nodes of a graph before autograd as instructions of a reference: each value gets a slot."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from ...ops.table import find_op
from ..captured import CaptureError
from ..metadata import source_span
from . import autocast
from .argument_json import encode_call
from .random_op import RANDOM
from .unknown_ops import unknown_op

Json = dict[str, Any]


class Instructions:
    """Writes nodes as instructions; `slots` has the slot of each value so far."""

    random_state: int | None = None
    """The slot of the RNG state."""

    def __init__(self, count: int) -> None:
        self.slots: dict[fx.Node, int] = {}
        self.count = count

    def of_node(self, node: fx.Node) -> list[Json]:
        """The instruction of a node; none for an element of a tuple. Errors: E0225, E0230."""
        if autocast.is_boundary(node):
            return [_boundary(node)]
        if node.op != "call_function" or node.target is operator.getitem:
            return []
        try:
            op, args, kwargs = encode_call(node, self.slots.__getitem__)
        except ValueError as error:
            raise CaptureError("E0225", f'"{node.target}": {error}', span=source_span(node)) from None
        if node.target is not RANDOM and find_op(op) is None:
            raise unknown_op(node, op)
        if node.target is RANDOM:
            args[0] = {"%": self.random_state}
        return [instruction(op, args, self.out(node), kwargs)]

    def out(self, node: fx.Node) -> list[int | None]:
        """New slots for the results: one, or one per used element of a tuple."""
        value = node.meta.get("val")
        if not isinstance(value, (tuple, list)):
            return [self.fresh(node)]
        slots: list[int | None] = [None] * len(value)
        for user in node.users:
            if user.target is operator.getitem:
                index = user.args[1]
                assert isinstance(index, int)
                if slots[index] is None:
                    slots[index] = self.fresh(user)
                self.slots[user] = slots[index]  # type: ignore[assignment]
        return slots

    def fresh(self, node: fx.Node) -> int:
        """A new slot for a value."""
        self.slots[node] = self.count
        self.count += 1
        return self.slots[node]


def instruction(op: str, args: list[Any], out: list[int | None], kwargs: Mapping[str, Any] | None = None) -> Json:
    """An instruction that frees nothing yet."""
    return {"op": op, "args": args, "kwargs": dict(kwargs or {}), "out": out, "free": []}


def _boundary(node: fx.Node) -> Json:
    """The instruction that begins an autocast region, or ends the innermost one."""
    begins = node.target is autocast.enter
    args = [{"dtype": str(node.args[0]).removeprefix("torch.")}, node.args[1]] if begins else []
    return instruction(f"stretto.autocast.{'begin' if begins else 'end'}", args, [])


def add_frees(code: list[Json], never_freed: set[int]) -> None:
    """Free each value after its last use."""
    alive = set(never_freed)
    for each in reversed(code):
        used = _slots_in([each["args"], each["kwargs"], each["out"]])
        used |= {slot for slot in each["out"] if slot is not None}
        each["free"] = sorted(used - alive)
        alive |= used


def _slots_in(value: Any) -> set[int]:
    if isinstance(value, dict):
        if "%" in value:
            return {value["%"]}
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*(_slots_in(item) for item in value))
    return set()
