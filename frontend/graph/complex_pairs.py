"""Rewrite complex numbers of a joint graph as pairs of real tensors: what rotary embeddings compute with them.

Before                                        After
  %z = view_as_complex(%x)                      %a, %b = select(%x, -1, 0), select(%x, -1, 1)
  %w = polar(%r, %angle)                        %c, %d = mul(%r, cos(%angle)), mul(%r, sin(%angle))
  %p = mul(%z, %w)                              %re, %im = sub(mul(%a, %c), mul(%b, %d)), add(mul(%a, %d), mul(%b, %c))
  %y = view_as_real(%p)                         %y = cat([unsqueeze(%re, -1), unsqueeze(%im, -1)], -1)

A complex buffer, constant or input is read through one `view_as_real`. The backward is rewritten alike: torch's
derivatives of these ops are such ops again. Other ops on complex numbers are refused at their line.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from ..captured import CaptureError, module_text
from ..metadata import source_span

aten = torch.ops.aten
Pair = tuple[Any, Any]
"""The real and the imaginary part: nodes, or numbers."""
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64, torch.complex32: torch.float16}
_BY_PART = frozenset(
    {
        aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default, aten.permute.default,
        aten.transpose.int, aten.t.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim,
        aten.squeeze.dims, aten.slice.Tensor, aten.select.int, aten.clone.default, aten.alias.default,
        aten.detach.default, aten.contiguous.default, aten.lift_fresh_copy.default, aten.neg.default,
        aten.sum.default, aten.sum.dim_IntList, aten.mean.dim, aten.index.Tensor,
        aten.index_select.default, aten.embedding.default, aten.cat.default, aten.stack.default,
        aten.slice_backward.default, aten.select_backward.default, aten.split.Tensor, aten.split_with_sizes.default,
        aten.unbind.int, aten.repeat.default, aten.flip.default, aten.roll.default, aten.zeros_like.default,
        aten.resolve_conj.default, aten.gather.default,
    }
)  # fmt: skip
"""Ops that do the same to both parts."""
_CONJUGATES = frozenset({aten._conj.default, aten._conj_physical.default, aten.conj_physical.default})


def write_complex_as_pairs(joint: fx.Graph) -> None:
    """Rewrite the graph in place. Errors: E0502 for an op on complex numbers without a rule, at its line."""
    pairs: dict[fx.Node, Pair] = {}
    rewritten: list[fx.Node] = []
    for node in list(joint.nodes):
        if node.op == "output":
            _refuse_results(node)
        elif node.op == "placeholder" and _is_complex(node.meta["val"]):
            pairs[node] = _read(node)
        elif _is_complex(node.meta.get("val")) or any(operand in pairs for operand in node.all_input_nodes):
            pair = _pair(_Writer(node), node, pairs)
            rewritten.append(node)
            if _is_complex(node.meta["val"]):
                pairs[node] = pair
            else:
                node.replace_all_uses_with(pair[0])
    for node in reversed(rewritten):
        joint.erase_node(node)


class _Writer:
    """Adds nodes in the place of one, with its metadata."""

    def __init__(self, node: fx.Node, after: fx.Node | None = None) -> None:
        self._node = node
        self._after = after

    def __call__(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        graph = self._node.graph
        with graph.inserting_before(self._node) if self._after is None else graph.inserting_after(self._after):
            node = graph.call_function(op, args, kwargs)
        node.meta = {key: value for key, value in self._node.meta.items() if key != "val"}
        node.meta["val"] = _value(op, args, kwargs)
        return node

    def product(self, x: Any, y: Any) -> Any:
        """The product; of two numbers, a number."""
        if not isinstance(x, fx.Node):
            x, y = y, x
        return self(aten.mul.Tensor, x, y) if isinstance(x, fx.Node) else x * y


def _value(op: Any, args: Any, kwargs: Any) -> Any:
    """The fake value of a call."""
    given, named = fx.map_arg((args, kwargs), lambda node: node.meta["val"])
    mode = next(value.fake_mode for value in pytree.tree_leaves((given, named)) if isinstance(value, FakeTensor))
    with mode, torch.no_grad():
        return op(*given, **named)


def _is_complex(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) and leaf.is_complex() for leaf in pytree.tree_leaves(value))


def _read(node: fx.Node) -> Pair:
    """The parts of an argument of the graph."""
    last = next(n for n in reversed(list(node.graph.nodes)) if n.op == "placeholder")
    whole = _Writer(node, last)(aten.view_as_real.default, node)
    imaginary = _Writer(node, whole)(aten.select.int, whole, -1, 1)
    return _Writer(node, whole)(aten.select.int, whole, -1, 0), imaginary


def _pair(write: _Writer, node: fx.Node, pairs: dict[fx.Node, Pair]) -> Pair:
    """The parts of a node's value; of a real value, itself and 0."""
    target, args = node.target, node.args
    if target in _BY_PART or target is operator.getitem:
        return _by_part(write, node, pairs)
    if target in _RULES:
        operands = [pairs.get(a, a) if isinstance(a, fx.Node) else a for a in args]
        pair = _RULES[target](write, *operands, **node.kwargs)
        if pair is not None:
            return pair
    raise _refused(node)


def _by_part(write: _Writer, node: fx.Node, pairs: dict[fx.Node, Pair]) -> Pair:
    operands = (operand for operand in node.all_input_nodes if operand not in pairs)
    dtype = node.kwargs.get("dtype")
    if any(_is_float(operand.meta.get("val")) for operand in operands) or (dtype is not None and dtype not in _REAL):
        raise _refused(node)
    named = {**node.kwargs, **({} if dtype is None else {"dtype": _REAL[dtype]})}  # type: ignore[index]

    def part(index: int) -> fx.Node:
        given = fx.map_arg((node.args, named), lambda operand: pairs[operand][index] if operand in pairs else operand)
        return write(node.target, *given[0], **given[1])

    return part(0), part(1)


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _parts(value: Any) -> Pair:
    """The parts of an operand of a rule: a pair, a real value, or a number."""
    if isinstance(value, tuple):
        return value
    return (value.real, value.imag) if isinstance(value, complex) else (value, 0)


def _multiply(write: _Writer, x: Any, y: Any) -> Pair | None:
    (a, b), (c, d) = _parts(x), _parts(y)
    if _is_zero(d):
        return write.product(a, c), write.product(b, c)
    if _is_zero(b):
        return write.product(a, c), write.product(a, d)
    real = write(aten.sub.Tensor, write.product(a, c), write.product(b, d))
    return real, write(aten.add.Tensor, write.product(a, d), write.product(b, c))


def _add(write: _Writer, x: Any, y: Any) -> Pair | None:
    """Of complex tensors; a real one, or a number, is added to the real part alone."""
    if not isinstance(x, tuple):
        x, y = y, x
    (a, b), (c, d) = _parts(x), _parts(y)
    return write(aten.add.Tensor, a, c), b if _is_zero(d) else write(aten.add.Tensor, b, d)


def _subtract(write: _Writer, x: Any, y: Any) -> Pair | None:
    if not isinstance(x, tuple) or not isinstance(y, tuple):
        return None
    return write(aten.sub.Tensor, x[0], y[0]), write(aten.sub.Tensor, x[1], y[1])


def _is_zero(part: Any) -> bool:
    return not isinstance(part, fx.Node) and part == 0


def _divide(write: _Writer, x: Any, y: Any) -> Pair | None:
    """By a real number; by a complex one as the product with its conjugate, over its squared length."""
    if not isinstance(y, tuple):
        return None if isinstance(y, complex) else (write(aten.div.Tensor, x[0], y), write(aten.div.Tensor, x[1], y))
    product = _multiply(write, x, _conjugate(write, y))
    return _divide(write, product, _square(write, y))


def _square(write: _Writer, x: Pair) -> fx.Node:
    """The squared length."""
    return write(aten.add.Tensor, write.product(x[0], x[0]), write.product(x[1], x[1]))


def _length(write: _Writer, x: Pair) -> Pair:
    return write(aten.sqrt.default, _square(write, x)), 0


def _direction(write: _Writer, x: Pair) -> Pair:
    """The number divided by its length; 0 for 0."""
    length, _ = _length(write, x)
    is_zero = write(aten.eq.Scalar, length, 0)
    parts = (write(aten.div.Tensor, part, length) for part in x)
    real, imaginary = (write(aten.masked_fill.Scalar, part, is_zero, 0) for part in parts)
    return real, imaginary


def _exponential(write: _Writer, x: Pair) -> Pair:
    return _polar(write, write(aten.exp.default, x[0]), x[1])


def _conjugate(write: _Writer, x: Any) -> Pair:
    real, imaginary = _parts(x)
    return real, write(aten.neg.default, imaginary) if isinstance(imaginary, fx.Node) else -imaginary


def _polar(write: _Writer, length: fx.Node, angle: fx.Node) -> Pair:
    cos, sin = write(aten.cos.default, angle), write(aten.sin.default, angle)
    return write.product(length, cos), write.product(length, sin)


def _of_pairs(write: _Writer, x: fx.Node) -> Pair:
    return write(aten.select.int, x, -1, 0), write(aten.select.int, x, -1, 1)


def _as_pairs(write: _Writer, x: Pair) -> Pair:
    columns = [write(aten.unsqueeze.default, part, -1) for part in x]
    return write(aten.cat.default, columns, -1), 0


def _cast(write: _Writer, x: Any, *, dtype: torch.dtype | None = None, **_place: Any) -> Pair | None:
    if dtype is None or not isinstance(x, tuple):
        return x if isinstance(x, tuple) else None
    real = _REAL.get(dtype)
    if real is None:
        return write(aten._to_copy.default, x[0], dtype=dtype), 0
    return write(aten._to_copy.default, x[0], dtype=real), write(aten._to_copy.default, x[1], dtype=real)


_RULES: dict[Any, Callable[..., Pair | None]] = {
    aten.mul.Tensor: _multiply,
    aten.mul.Scalar: _multiply,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _subtract,
    aten.div.Tensor: _divide,
    aten.div.Scalar: _divide,
    aten.polar.default: _polar,
    aten.abs.default: _length,
    aten.sgn.default: _direction,
    aten.exp.default: _exponential,
    aten.complex.default: lambda write, real, imaginary: (real, imaginary),
    aten.view_as_complex.default: _of_pairs,
    aten.view_as_real.default: _as_pairs,
    aten._to_copy.default: _cast,
    **dict.fromkeys(_CONJUGATES, _conjugate),
}


def _refuse_results(output: fx.Node) -> None:
    """Errors: E0502 for a complex result of the graph."""
    for node in output.all_input_nodes:
        if _is_complex(node.meta.get("val")):
            raise CaptureError(
                "E0502",
                "a complex tensor leaves the model, or a complex parameter is trained",
                span=source_span(node),
                expected="complex numbers that end in torch.view_as_real",
                help="return torch.view_as_real(z), and keep parameters as pairs of reals",
            )


def _refused(node: fx.Node) -> CaptureError:
    return CaptureError(
        "E0502",
        f'"{node.target}"{module_text(node)} computes with complex numbers',
        span=source_span(node),
        expected="products, quotients, sums, conjugates and views of complex numbers, polar, exp and abs",
        help="write it with real and imaginary parts",
    )
