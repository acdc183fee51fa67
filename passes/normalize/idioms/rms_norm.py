"""Root-mean-square normalization: x * rsqrt(mean(x^2, -1) + eps) * weight becomes `nn.rms_norm`, with its backward.

The search starts at each rsqrt. Casts to float32 before and back to x's dtype after the product are part of the
idiom; casts apart from each other stay outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ....ir.operations import Call
from ....ir.types import absent
from .backward import Backward, backwards
from .dataflow import Dataflow, Node, Ref
from .derive import Derivations, Region
from .findings import Findings
from .function_dataflow import FunctionDataflow

CAST = "aten._to_copy.default"
PRODUCT = "aten.mul.Tensor"
X, WEIGHT = 0, 1
"""Indices of the region's inputs."""
TRAINED: tuple[tuple[int, ...], ...] = ((X, WEIGHT), (X,), (WEIGHT,))
"""Inputs that may have gradients: the most complete backward is searched first."""


@dataclass(frozen=True)
class Norm:
    """A recognised forward."""

    region: Region
    eps: float
    rstd: Ref

    @property
    def kept(self) -> tuple[Ref, Ref]:
        """The values that the nn operation returns."""
        return self.region.output, self.rstd


def raise_rms_norm(graph: FunctionDataflow, findings: Findings, derivations: Derivations) -> None:
    """Replace every rms_norm of the function that fits."""
    for root in graph.by_name["aten.rsqrt.default"]:
        square = _square(graph, root)
        if square is None:
            continue
        norm = _forward(graph, root, square)
        missed = norm if isinstance(norm, str) else _rewrite(graph, norm, findings, derivations)
        if missed is not None:
            findings.miss("rms_norm", missed, root)


def _square(graph: Dataflow, root: Node) -> tuple[Node, Node, Node] | None:
    """The square, mean and sum with eps before a reciprocal root."""
    shifted = graph.producer(root.tensor("self"), "aten.add.Scalar")
    mean = None if shifted is None else graph.producer(shifted.tensor("self"), "aten.mean.dim")
    square = None if mean is None else graph.producer(mean.tensor("self"), PRODUCT, "aten.pow.Tensor_Scalar")
    if shifted is None or mean is None or square is None:
        return None
    is_square = square.constant("exponent") == 2 or square.operand("self") == square.operand("other")
    return (square, mean, shifted) if is_square else None


def _forward(graph: Dataflow, root: Node, before: tuple[Node, Node, Node]) -> Norm | str:
    """The norm around a reciprocal root, or the reason why it is none."""
    square, mean, shifted = before
    wide = square.tensor("self")
    rank = len(graph.type_of(wide).shape)
    if list(mean.constant("dim") or ()) not in ([-1], [rank - 1]) or not mean.constant("keepdim"):
        return f"the mean is over dims {mean.constant('dim')}, not over the last one alone"
    if shifted.constant("alpha") is not None:
        return "eps has a factor"
    if graph.type_of(wide).dtype.itemsize == 2:
        return f"the mean is taken in {graph.type_of(wide).dtype}"
    rstd = root.results[0]
    normal = next(_products(graph, rstd, wide), None)
    if normal is None:
        return "the root does not scale what was squared"
    cast = graph.producer(wide, CAST)
    for narrow in _narrowed(graph, normal, cast):
        scaled = _scaled(graph, narrow)
        if scaled is None:
            continue
        weight, y = scaled
        inner = (square, mean, shifted, root, normal)
        if narrow is normal:
            return _norm(inner, y, wide, weight, rstd)
        assert cast is not None
        return _norm((cast, *inner, narrow), y, cast.tensor("self"), weight, rstd)
    return "no weight of the last dim's size scales it"


def _norm(inner: Sequence[Node], y: Node, x: Ref, weight: Ref, rstd: Ref) -> Norm:
    nodes = tuple(sorted({node.index: node for node in (*inner, y)}.values(), key=lambda n: n.index))
    [shifted] = [node for node in inner if node.name == "aten.add.Scalar"]
    return Norm(Region(nodes, (x, weight), y.results[0]), float(shifted.constant("other")), rstd)


def _products(graph: Dataflow, left: Ref, right: Ref) -> Iterator[Node]:
    """The products of two values, in either order."""
    for node in graph.users_of(left, PRODUCT):
        if {node.operand("self"), node.operand("other")} == {left, right}:
            yield node


def _narrowed(graph: Dataflow, normal: Node, cast: Node | None) -> Iterator[Node]:
    """The normalized value in x's dtype: after the cast that undoes `cast`, or as it is."""
    if cast is not None:
        original = graph.types[cast.tensor("self")]
        for node in graph.users_of(normal.results[0], CAST):
            if graph.types[node.results[0]] == original:
                yield node
    yield normal


def _scaled(graph: Dataflow, normal: Node) -> tuple[Ref, Node] | None:
    """The weight (C) that scales the normalized value, and the product."""
    value = normal.results[0]
    size = graph.type_of(value).shape[-1]
    for node in graph.users_of(value, PRODUCT):
        for operand in node.operands():
            if operand != value and graph.type_of(operand).shape == (size,):
                return operand, node
    return None


def _rewrite(graph: FunctionDataflow, norm: Norm, findings: Findings, derivations: Derivations) -> str | None:
    """Replace a norm and its backward; returns why it cannot be replaced, else None."""
    slot = graph.slot(norm.region.nodes, norm.region.inputs, norm.kept)
    if slot is None:
        return "its weight is computed after it"
    backward = next(_backwards(graph, norm, derivations), None)
    user = graph.outside_user(_replaced_nodes(norm), norm.kept)
    if backward is None and user is not None:
        return f'an intermediate value is also used by "{user.name}", which is no part of its backward'
    _replace_forward(graph, norm, slot)
    findings.raised["nn.rms_norm"] += 1
    if backward is not None:
        _replace_backward(graph, norm, backward)
        findings.raised["nn.rms_norm_backward"] += 1
    return None


def _replaced_nodes(norm: Norm) -> list[Node]:
    """The nodes that are replaced; the cast of x may have other users, and stays for them."""
    return [n for n in norm.region.nodes if n.name != CAST or n.operand("self") != norm.region.inputs[X]]


def _backwards(graph: FunctionDataflow, norm: Norm, derivations: Derivations) -> Iterator[Backward]:
    inputs = (*norm.region.inputs, norm.rstd)
    for trained in TRAINED:
        derived = derivations.backward(graph, norm.region, trained)
        bound = dict(zip(derived.forward, norm.region.values, strict=True))
        yield from backwards(
            graph, derived, trained, bound=bound, forward_nodes=_replaced_nodes(norm), kept=norm.kept, inputs=inputs
        )


def _replace_forward(graph: FunctionDataflow, norm: Norm, slot: int) -> None:
    y, rstd = (graph.current(ref) for ref in norm.kept)
    call = Call("nn.rms_norm", (*[graph.current(ref) for ref in norm.region.inputs], norm.eps))
    results = graph.insert(slot, call, [y.type, rstd.type], y.owner.location)
    for ref, value in zip(norm.kept, results, strict=True):
        graph.replace(ref, value, slot)


def _replace_backward(graph: FunctionDataflow, norm: Norm, backward: Backward) -> None:
    x, weight = (graph.current(ref) for ref in norm.region.inputs)
    call = Call("nn.rms_norm_backward", (graph.current(backward.grad), x, graph.current(norm.rstd), weight))
    types = [backward.sums[index].type if index in backward.sums else absent() for index in (X, WEIGHT)]
    gradients = graph.insert(backward.slot, call, types, backward.location)
    for index, total in backward.sums.items():
        total.replace(graph, gradients[index])
