"""Layer normalization: torch's operator and its backward become `nn.layer_norm` and `nn.layer_norm_backward`.

A gradient that the backward's mask leaves out is an absent result of the nn operation too.
"""

from __future__ import annotations

from ....ir.operations import Call
from .dataflow import Node
from .findings import Findings
from .function_dataflow import FunctionDataflow

FORWARD = "aten.native_layer_norm.default"
BACKWARD = "aten.native_layer_norm_backward.default"


def raise_layer_norm(graph: FunctionDataflow, findings: Findings) -> None:
    """Replace every layer normalization of the function."""
    for node in graph.by_name[FORWARD]:
        operands = [graph.current(node.operand(o)) for o in ("input", "weight", "bias")]
        call = Call("nn.layer_norm", (*operands, _shape(node), node.constant("eps")))
        graph.substitute(node, call)
        findings.raised[call.name] += 1
    for node in graph.by_name[BACKWARD]:
        names = ("grad_out", "input", "mean", "rstd", "weight", "bias")
        call = Call("nn.layer_norm_backward", (*[graph.current(node.operand(o)) for o in names], _shape(node)))
        graph.substitute(node, call)
        findings.raised[call.name] += 1


def _shape(node: Node) -> list[int]:
    return list(node.constant("normalized_shape"))
