"""Fused attention: torch's operator for the CPU and its backward become `nn.attention` and `nn.attention_backward`.

Keys and values may have fewer heads than queries; where the model repeats them itself, that stays outside. Dropout
inside the operator is not raised.
"""

from __future__ import annotations

from ....ir.operations import Call
from .dataflow import Node
from .findings import Findings
from .function_dataflow import FunctionDataflow

FORWARD = "aten._scaled_dot_product_flash_attention_for_cpu.default"
BACKWARD = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"


def raise_attention(graph: FunctionDataflow, findings: Findings) -> None:
    """Replace every fused attention of the function."""
    for node in graph.by_name[FORWARD]:
        _raise(graph, findings, node, "nn.attention", ("query", "key", "value"))
    for node in graph.by_name[BACKWARD]:
        operands = ("grad_out", "query", "key", "value", "out", "logsumexp")
        _raise(graph, findings, node, "nn.attention_backward", operands)


def _raise(graph: FunctionDataflow, findings: Findings, node: Node, name: str, operands: tuple[str, ...]) -> None:
    dropout = node.constant("dropout_p") or 0.0
    if dropout != 0.0:
        findings.miss("attention", f"it drops attention weights with probability {dropout}", node)
        return
    values = [graph.current(node.operand(o)) for o in (*operands, "attn_mask")]
    causal = bool(node.constant("is_causal"))
    call = Call(name, (*values, causal, node.constant("scale")))
    graph.substitute(node, call)
    findings.raised[name] += 1
