"""Cross-entropy: log_softmax and nll_loss over (N, V) logits become `nn.cross_entropy`, with their backward.

A mean is total / count, both kept apart so that each can be summed over ranks; without any valid row that is nan, as
torch has it. Sums run in float32 where the logits have 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ....ir.bindings import Location, Value
from ....ir.operations import Call
from ....ir.types import TensorType, to_mlir
from .dataflow import Node, Ref
from .findings import Findings
from .function_dataflow import FunctionDataflow

LOG_SOFTMAX = "aten._log_softmax.default"
LOG_SOFTMAX_BACKWARD = "aten._log_softmax_backward_data.default"
NLL_LOSS = "aten.nll_loss_forward.default"
NLL_LOSS_BACKWARD = "aten.nll_loss_backward.default"
MEAN, SUM = 1, 2
"""torch's numbers of the reductions."""


@dataclass(frozen=True)
class Loss:
    """One recognised cross-entropy: its forward nodes and the backward pairs that use what it kept."""

    log_softmax: Node
    nll: Node
    backwards: tuple[tuple[Node, Node], ...]
    """(nll_loss_backward, _log_softmax_backward_data)."""

    @property
    def logits(self) -> Ref:
        return self.log_softmax.tensor("self")

    @property
    def labels(self) -> Ref:
        return self.nll.tensor("target")

    @property
    def ignore_index(self) -> int:
        return int(self.nll.constant("ignore_index"))

    @property
    def is_mean(self) -> bool:
        return bool(self.nll.constant("reduction") == MEAN)


def raise_cross_entropy(graph: FunctionDataflow, findings: Findings) -> None:
    """Replace every cross-entropy of the function that fits."""
    for nll in graph.by_name[NLL_LOSS]:
        loss = _match(graph, nll)
        if isinstance(loss, str):
            findings.miss("cross-entropy", loss, nll)
            continue
        _rewrite(graph, loss)
        findings.raised["nn.cross_entropy"] += 1
        findings.raised["nn.cross_entropy_backward"] += len(loss.backwards)


def _match(graph: FunctionDataflow, nll: Node) -> Loss | str:
    """The loss that ends in `nll`, or what keeps it from being one."""
    log_softmax = graph.producer(nll.operand("self"), LOG_SOFTMAX)
    if log_softmax is None:
        return "the loss is not taken of a log_softmax"
    if nll.operand("weight") is not None:
        return "classes have weights"
    if nll.constant("reduction") not in (MEAN, SUM):
        return "the losses of the rows are not reduced"
    logits = graph.type_of(log_softmax.tensor("self"))
    if len(logits.shape) != 2 or log_softmax.constant("dim") not in (1, -1):
        return f"the logits have shape {logits.shape}, not (rows, classes)"
    if graph.type_of(log_softmax.results[0]) != logits:
        return "the log_softmax changes the dtype"
    backwards: list[tuple[Node, Node]] = []
    for user in graph.users[log_softmax.results[0]]:
        if user is nll or user.name == NLL_LOSS_BACKWARD:
            continue
        nll_backward = _nll_backward(graph, user, nll) if user.name == LOG_SOFTMAX_BACKWARD else None
        if nll_backward is None:
            return f'the log_softmax is also used by "{user.name}"'
        backwards.append((nll_backward, user))
    used = {id(nll_backward) for nll_backward, _ in backwards}
    if any(id(n) not in used for n in graph.users_of(log_softmax.results[0], NLL_LOSS_BACKWARD)):
        return "a gradient of the log_softmax is used apart from that of the logits"
    return Loss(log_softmax, nll, tuple(backwards))


def _nll_backward(graph: FunctionDataflow, user: Node, nll: Node) -> Node | None:
    """The nll_loss_backward of `nll` that alone feeds the log_softmax's backward `user`."""
    node = graph.producer(user.operand("grad_output"), NLL_LOSS_BACKWARD)
    if node is None or node.operand("total_weight") != nll.results[1]:
        return None
    same = all(
        node.arguments.get(key) == nll.arguments.get(key)
        for key in ("self", "target", "weight", "reduction", "ignore_index")
    )
    return node if same and graph.users[node.results[0]] == [user] else None


def _rewrite(graph: FunctionDataflow, loss: Loss) -> None:
    logits = graph.type_of(loss.logits)
    dtype = torch.float32 if logits.dtype.itemsize == 2 else logits.dtype
    types = [to_mlir(TensorType(dtype, shape)) for shape in ((), (), logits.shape[:1])]
    call = Call("nn.cross_entropy", (graph.current(loss.logits), graph.current(loss.labels), loss.ignore_index))
    forward = _Inserter(graph, loss.nll.index, loss.nll.op.location)
    total, count, logsumexp = forward.insert(call, types)
    value = forward.divide(total, count) if loss.is_mean else total
    for ref, new in zip(loss.nll.results, (value, count), strict=True):
        graph.replace(ref, forward.cast(new, graph.type_of(ref).dtype), loss.nll.index)
    for nll_backward, softmax_backward in loss.backwards:
        backward = _Inserter(graph, nll_backward.index, softmax_backward.op.location)
        scale = backward.cast(graph.current(nll_backward.tensor("grad_output")), dtype)
        scale = backward.divide(scale, count) if loss.is_mean else scale
        arguments = (scale, graph.current(loss.logits), graph.current(loss.labels), logsumexp, loss.ignore_index)
        [result] = softmax_backward.op.results
        [gradient] = backward.insert(Call("nn.cross_entropy_backward", arguments), [result.type])
        graph.replace(softmax_backward.results[0], gradient, nll_backward.index)


@dataclass(frozen=True)
class _Inserter:
    """Builds operations at one place."""

    graph: FunctionDataflow
    slot: int
    loc: Location

    def insert(self, call: Call, types: list[Any]) -> list[Value]:
        return self.graph.insert(self.slot, call, types, self.loc)

    def divide(self, numerator: Value, denominator: Value) -> Value:
        [quotient] = self.insert(Call("aten.div.Tensor", (numerator, denominator)), [numerator.type])
        return quotient

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        target = to_mlir(TensorType(dtype, ()))
        if value.type == target:
            return value
        return self.insert(Call("aten._to_copy.default", (value,), {"dtype": dtype}), [target])[0]
