"""Rotary position embedding: x * cos + rotate_half(x) * sin becomes `nn.rotary`, with its backward.

The search starts at each concatenation of a negated upper half and a lower half. The backward needs only cos and sin of
its forward, so it is matched on its own, anywhere in the function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ....ir.bindings import Location, Value
from ....ir.operations import Call
from ....ir.types import TensorType, to_mlir
from .backward import backwards
from .dataflow import Dataflow, Node, Ref
from .derive import Derivations, Derived, Region
from .findings import Findings
from .function_dataflow import FunctionDataflow

PRODUCT = "aten.mul.Tensor"
X, COS, SIN = 0, 1, 2
"""Indices of the region's inputs."""


def raise_rotary(graph: FunctionDataflow, findings: Findings, derivations: Derivations) -> None:
    """Replace every rotary embedding of the function that fits."""
    backwards_by_id: dict[int, Derived] = {}
    for rotated in graph.by_name["aten.cat.default"]:
        rotation = _rotation(graph, rotated)
        if rotation is None:
            continue
        region = _forward(graph, rotated, *rotation)
        if isinstance(region, str):
            findings.miss("rotary", region, rotated)
            continue
        derived = derivations.backward(graph, region, (X,))
        backwards_by_id.setdefault(id(derived), derived)
        _replace_forward(graph, region)
        findings.raised["nn.rotary"] += 1
    for derived in backwards_by_id.values():
        findings.raised["nn.rotary_backward"] += _replace_backwards(graph, derived)


@dataclass(frozen=True)
class _Half:
    """A half of a value's last dim: 0 is the lower one."""

    whole: Ref
    which: int
    node: Node


def _half(graph: Dataflow, ref: Ref) -> _Half | None:
    """Which half of which value `ref` is, by slice or split."""
    node = graph.producer(ref, "aten.slice.Tensor", "aten.split.Tensor")
    if node is None:
        return None
    shape = graph.type_of(node.tensor("self")).shape
    size = shape[-1]
    if (node.constant("dim") or 0) not in (-1, len(shape) - 1) or graph.type_of(ref).shape != (*shape[:-1], size // 2):
        return None
    start = node.results.index(ref) * (size // 2) if node.name == "aten.split.Tensor" else node.constant("start") or 0
    if size % 2 or start % size not in (0, size // 2) or (node.constant("step") or 1) != 1:
        return None
    return _Half(node.tensor("self"), int(start % size > 0), node)


def _rotation(graph: Dataflow, node: Node) -> tuple[Ref, tuple[Node, ...]] | None:
    """The value of which `node` is rotate_half, and the nodes before it; None if it is something else."""
    parts = node.arguments["tensors"]
    negative = graph.producer(parts[0].ref, "aten.neg.default") if len(parts) == 2 else None
    if negative is None:
        return None
    high, low = _half(graph, negative.tensor("self")), _half(graph, parts[1].ref)
    if high is None or low is None or high.whole != low.whole or (high.which, low.which) != (1, 0):
        return None
    if (node.constant("dim") or 0) not in (-1, len(graph.type_of(high.whole).shape) - 1):
        return None
    return high.whole, (high.node, low.node, negative)


def _forward(graph: FunctionDataflow, rotated: Node, x: Ref, before: tuple[Node, ...]) -> Region | str:
    """The region around a rotate_half of `x`, or the reason why it is no rotary embedding."""
    for sine, sin in _factors(graph, rotated.results[0]):
        for total, other in _others(graph, sine, "aten.add.Tensor"):
            for cosine, cos in _factors(graph, x):
                if cosine.results[0] == other:
                    nodes = {n.index: n for n in (*before, rotated, sine, cosine, total)}
                    return _checked(
                        graph, Region(tuple(nodes[i] for i in sorted(nodes)), (x, cos, sin), total.results[0])
                    )
    return "the turned halves are not scaled and added to the scaled whole"


def _factors(graph: Dataflow, ref: Ref) -> Iterator[tuple[Node, Ref]]:
    """The products that a value goes into, with the other factor."""
    for node in graph.users_of(ref, PRODUCT):
        for other in _other_operands(node, ref):
            yield node, other


def _others(graph: Dataflow, node: Node, name: str) -> Iterator[tuple[Node, Ref]]:
    for user in graph.users_of(node.results[0], name):
        if user.arguments.keys() == {"self", "other"}:
            for other in _other_operands(user, node.results[0]):
                yield user, other


def _other_operands(node: Node, ref: Ref) -> list[Ref]:
    return [operand for operand in node.operands() if operand != ref]


def _checked(graph: FunctionDataflow, region: Region) -> Region | str:
    x, cos, sin = (graph.type_of(ref) for ref in region.inputs)
    if len(x.shape) != 4:
        return f"x has shape {x.shape}, not (batch, heads, sequence, size)"
    if graph.type_of(region.output) != x:
        return "cos and sin have another dtype than x"
    for angle in (cos, sin):
        if _angle_shape(angle, x) is None:
            return f"cos and sin of shape {angle.shape} do not stand for all heads of x of shape {x.shape}"
    user = graph.outside_user(region.nodes, (region.output,))
    if user is not None:
        return f'an intermediate value is also used by "{user.name}"'
    if graph.slot(region.nodes, region.inputs, (region.output,)) is None:
        return "cos or sin is computed after it"
    return region


def _angle_shape(angle: TensorType, x: TensorType) -> tuple[int, int, int] | None:
    """The shape (B or 1, S, D) of cos or sin; None if it is not the same for all heads."""
    batch, _, *rest = x.shape
    padded = (1,) * (len(x.shape) - len(angle.shape)) + angle.shape
    fits = padded[0] in (1, batch) and padded[1] == 1 and list(padded[2:]) == rest
    return (padded[0], padded[2], padded[3]) if fits else None


def _replace_forward(graph: FunctionDataflow, region: Region) -> None:
    x, cos, sin = region.inputs
    slot = graph.slot(region.nodes, region.inputs, (region.output,))
    assert slot is not None
    output = graph.current(region.output)
    loc = output.owner.location
    angles = [_angle(graph, ref, slot, loc) for ref in (cos, sin)]
    [result] = graph.insert(slot, Call("nn.rotary", (graph.current(x), *angles)), [output.type], loc)
    graph.replace(region.output, result, slot)


def _angle(graph: FunctionDataflow, ref: Ref, slot: int, loc: Location) -> Value:
    """cos or sin as (B or 1, S, D)."""
    type_ = graph.type_of(ref)
    node = graph.producer(ref, "aten.unsqueeze.default")
    if node is not None and node.constant("dim") in (1, -3) and len(type_.shape) == 4:
        return graph.current(node.tensor("self"))
    if len(type_.shape) == 3:
        return graph.current(ref)
    name, dim = ("aten.squeeze.dim", 1) if len(type_.shape) == 4 else ("aten.unsqueeze.default", 0)
    shape = (type_.shape[0], *type_.shape[2:]) if len(type_.shape) == 4 else (1, *type_.shape)
    [angle] = graph.insert(slot, Call(name, (graph.current(ref), dim)), [to_mlir(TensorType(type_.dtype, shape))], loc)
    return angle


def _replace_backwards(graph: FunctionDataflow, derived: Derived) -> int:
    """Replace every occurrence of one backward; returns how many there were."""
    cos, sin = derived.forward[COS], derived.forward[SIN]
    replaced: set[int] = set()
    count = 0
    for backward in backwards(graph, derived, (X,), bound={}, forward_nodes=(), kept=(), inputs=()):
        nodes = {node.index for node in backward.nodes}
        if nodes & replaced:
            continue
        replaced |= nodes
        count += 1
        angles = [_angle(graph, backward.values[ref], backward.slot, backward.location) for ref in (cos, sin)]
        call = Call("nn.rotary_backward", (graph.current(backward.grad), *angles))
        [gradient] = graph.insert(backward.slot, call, [backward.sums[X].type], backward.location)
        backward.sums[X].replace(graph, gradient)
    return count
