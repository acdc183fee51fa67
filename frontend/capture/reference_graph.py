"""The reference: the forward before autograd as JSON, which `run --check` compares a program with.

The ops are those of the exported graph (such as `aten.linear.default`, and in-place updates of buffers). They run in
order under torch's autograd on one device, with copies of the buffers.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx

from ...ops.table import find_op
from ..captured import CapturedOutput, CapturedTensor, CaptureError, InputKind, OutputKind
from ..graph import autocast
from ..graph.argument_json import encode_call
from ..graph.random_op import RANDOM, RANDOM_STATE
from ..graph.unknown_ops import unknown_op
from ..metadata import source_span
from .assemble import Names


def reference_graph(
    forward: fx.GraphModule, names: Names, inputs: Sequence[CapturedTensor], outputs: Sequence[CapturedOutput]
) -> dict[str, Any]:
    """`{inputs, outputs, slots, code}` of `forward`; slot i < len(inputs) is input i, tangents are left out.

    Outputs are in the capture's order: results, then buffers that the forward changes in place, in their input slots.
    Errors: E0225 for an op with an argument that has no JSON form, E0230 for an op outside the table.
    """
    reference_inputs = [tensor for tensor in inputs if tensor.kind is not InputKind.TANGENT]
    return _Writer(forward, names, reference_inputs).write(outputs)


class _Writer:
    """Writes the instructions of a graph; every value gets a slot."""

    def __init__(self, forward: fx.GraphModule, names: Names, inputs: Sequence[CapturedTensor]) -> None:
        self._graph = forward.graph
        self._names = names
        self._inputs = inputs
        self._input_slot = {(tensor.kind, tensor.name): index for index, tensor in enumerate(inputs)}
        self._slots: dict[fx.Node, int] = {}
        self._count = len(inputs)

    def write(self, outputs: Sequence[CapturedOutput]) -> dict[str, Any]:
        code = self._instructions()
        values: Any = self._graph.output_node().args[0]
        listed: list[dict[str, Any]] = []
        for output in outputs:
            if output.kind is OutputKind.OUTPUT:
                slot = self._slots[values[output.index]]
            elif output.kind is OutputKind.BUFFER:
                slot = self._input_slot[InputKind.BUFFER, output.name]
            else:
                continue
            listed.append({"kind": str(output.kind), "name": output.name, "index": output.index, "slot": slot})
        _add_frees(code, {output["slot"] for output in listed} | set(range(len(self._inputs))))
        return {
            "inputs": [_describe(tensor) for tensor in self._inputs],
            "outputs": listed,
            "slots": self._count,
            "code": code,
        }

    def _instructions(self) -> list[dict[str, Any]]:
        code: list[dict[str, Any]] = []
        user_inputs = iter(range(len(self._inputs)))
        for node in self._graph.nodes:
            if node.op == "placeholder":
                index = next(user_inputs)
                self._slots[node] = self._input_slot[InputKind.INPUT, self._names.inputs[index]]
            elif node.op == "get_attr":
                self._slots[node] = self._input_slot[self._names.own(node.target)]
            elif autocast.is_boundary(node):
                code.append(_boundary(node))
            elif node.op == "call_function" and node.target is not operator.getitem:
                code.append(self._instruction(node))
        return code

    def _instruction(self, node: fx.Node) -> dict[str, Any]:
        try:
            op, args, kwargs = encode_call(node, self._slots.__getitem__)
        except ValueError as error:
            raise CaptureError("E0225", f'"{node.target}": {error}', span=source_span(node)) from None
        if node.target is not RANDOM and find_op(op) is None:
            raise unknown_op(node, op)
        if node.target is RANDOM:
            args[0] = {"%": self._input_slot[InputKind.RANDOM, RANDOM_STATE.name]}
        return {"op": op, "args": args, "kwargs": kwargs, "out": self._out(node), "free": [], "loc": None}

    def _out(self, node: fx.Node) -> list[int | None]:
        """New slots for the results: one, or one per used element of a tuple."""
        value = node.meta.get("val")
        if not isinstance(value, (tuple, list)):
            return [self._fresh(node)]
        slots: list[int | None] = [None] * len(value)
        for user in node.users:
            if user.target is operator.getitem:
                index = user.args[1]
                assert isinstance(index, int)
                if slots[index] is None:
                    slots[index] = self._fresh(user)
                self._slots[user] = slots[index]  # type: ignore[assignment]
        return slots

    def _fresh(self, node: fx.Node) -> int:
        self._slots[node] = self._count
        self._count += 1
        return self._slots[node]


def _boundary(node: fx.Node) -> dict[str, Any]:
    """The instruction that begins an autocast region, or ends the innermost one."""
    begins = node.target is autocast.enter
    args = [{"dtype": str(node.args[0]).removeprefix("torch.")}, node.args[1]] if begins else []
    return {
        "op": f"stretto.autocast.{'begin' if begins else 'end'}",
        "args": args,
        "kwargs": {},
        "out": [],
        "free": [],
        "loc": None,
    }


def _describe(tensor: CapturedTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "kind": str(tensor.kind),
        "aliases": list(tensor.aliases),
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "requires_grad": tensor.requires_grad,
        "index": tensor.index,
    }


def _add_frees(code: list[dict[str, Any]], never_freed: set[int]) -> None:
    """Free each value after its last use."""
    alive = set(never_freed)
    for instruction in reversed(code):
        used = _slots_in([instruction["args"], instruction["kwargs"], instruction["out"]])
        used |= {slot for slot in instruction["out"] if slot is not None}
        instruction["free"] = sorted(used - alive)
        alive |= used


def _slots_in(value: Any) -> set[int]:
    if isinstance(value, dict):
        if "%" in value:
            return {value["%"]}
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*(_slots_in(item) for item in value))
    return set()
