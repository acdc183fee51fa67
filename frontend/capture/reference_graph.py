"""The reference: the forward before autograd as JSON, which `run --check` compares a program with.

The ops are those of the exported graph (such as `aten.linear.default`, and in-place updates of buffers). They run in
order under torch's autograd on one device, with copies of the buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from ..captured import CapturedOutput, CapturedTensor, InputKind, OutputKind
from ..custom_functions.custom_function import CustomFunction
from ..custom_functions.reference_function import CUSTOM_FUNCTION, write_function
from ..graph.argument_json import encode
from ..graph.instructions import Instructions, add_frees, instruction
from ..graph.random_op import RANDOM_STATE
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


class _Writer(Instructions):
    """Writes the reference; every value gets a slot."""

    def __init__(self, forward: fx.GraphModule, names: Names, inputs: Sequence[CapturedTensor]) -> None:
        super().__init__(len(inputs))
        self._module = forward
        self._graph = forward.graph
        self._names = names
        self._inputs = inputs
        self._input_slot = {(tensor.kind, tensor.name): index for index, tensor in enumerate(inputs)}
        self._functions: list[dict[str, Any]] = []
        self.random_state = self._input_slot.get((InputKind.RANDOM, RANDOM_STATE.name))

    def write(self, outputs: Sequence[CapturedOutput]) -> dict[str, Any]:
        code = self._instructions()
        values: Any = self._graph.output_node().args[0]
        listed: list[dict[str, Any]] = []
        for output in outputs:
            if output.kind is OutputKind.OUTPUT:
                slot = self.slots[values[output.index]]
            elif output.kind is OutputKind.BUFFER:
                slot = self._input_slot[InputKind.BUFFER, output.name]
            else:
                continue
            listed.append({"kind": str(output.kind), "name": output.name, "index": output.index, "slot": slot})
        add_frees(code, {output["slot"] for output in listed} | set(range(len(self._inputs))))
        functions = {"functions": self._functions} if self._functions else {}
        return {
            "inputs": [_describe(tensor) for tensor in self._inputs],
            "outputs": listed,
            "slots": self.count,
            "code": code,
            **functions,
        }

    def _instructions(self) -> list[dict[str, Any]]:
        code: list[dict[str, Any]] = []
        user_inputs = iter(range(len(self._inputs)))
        for node in self._graph.nodes:
            if node.op == "placeholder":
                index = next(user_inputs)
                self.slots[node] = self._input_slot[InputKind.INPUT, self._names.inputs[index]]
            elif node.op == "get_attr":
                self.slots[node] = self._input_slot[self._names.own(node.target)]
            elif node.op == "call_module":
                code.append(self._custom_function(node))
            else:
                code += self.of_node(node)
        return code

    def _custom_function(self, node: fx.Node) -> dict[str, Any]:
        """The call of a custom autograd function, which is listed by its index."""
        function = self._module.get_submodule(str(node.target))
        assert isinstance(function, CustomFunction), "no other module is called"
        written, draws = write_function(function)
        self._functions.append(written)
        operands = [encode(operand, self.slots.__getitem__) for operand in node.args]
        state = [{"%": self.random_state}] if draws else []
        args = [len(self._functions) - 1, *operands, *state]
        return instruction(CUSTOM_FUNCTION, args, self.out(node))


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
