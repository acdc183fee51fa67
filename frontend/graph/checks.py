"""What a captured graph may not contain."""

from __future__ import annotations

import torch
from torch import fx

from ..captured import CaptureError, origin_of
from ..metadata import source_span

_PRODUCTS = frozenset(
    {
        torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default, torch.ops.aten.convolution.default,
    }
)  # fmt: skip


def refuse_random_ops(graph: fx.Graph) -> None:
    """Random numbers must be the same under every plan: refuse what `expand_random_ops` left. Errors: E0217."""
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and _draws(node):
            path = origin_of(node).module_path
            where = f' in module "{path}"' if path else ""
            raise CaptureError(
                "E0217",
                f'"{node.target}"{where} draws random numbers in a way that cannot be the same under every plan',
                span=source_span(node),
                expected="a dropout, or rand, randn, randint, bernoulli and their like, without a generator",
                help="write it with torch.rand, pass the noise in as an input, or switch it off with model.eval()",
            )


def refuse_mixed_products(graph: fx.Graph) -> None:
    """A product of two dtypes fails when it runs, which tracing does not see. Errors: E0224."""
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in _PRODUCTS:
            continue
        values = [each.meta.get("val") for each in node.all_input_nodes]
        found = {each.dtype for each in values if isinstance(each, torch.Tensor)}
        if len(found) > 1:
            path = origin_of(node).module_path
            where = f' in module "{path}"' if path else ""
            names = " by ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
            raise CaptureError(
                "E0224",
                f"forward multiplies {names}{where}",
                span=source_span(node),
                expected="one dtype on both sides of a matrix product",
                help="convert the input, such as x.to(weight.dtype), or the model, such as model.double()",
            )


def refuse_unknown_operators(graph: fx.Graph) -> None:
    """Operators that take functions have no meaning in the IR: no `torch.cond`, no `flex_attention`. Errors: E0226."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(
                "E0226",
                f'the operator "{node.target.__name__}" cannot be captured',
                span=source_span(node),
                expected="tensor ops only",
                help="write it with plain tensor ops: torch.where for torch.cond, a Python loop for while_loop",
            )


def _draws(node: fx.Node) -> bool:
    """Whether the op draws: attention is tagged as random but does so only with a dropout above 0."""
    assert isinstance(node.target, torch._ops.OpOverload)
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    for at, argument in enumerate(node.target._schema.arguments):
        if argument.name in ("dropout_p", "p"):
            value = node.args[at] if at < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            return bool(value)
    return True
