"""Refusal of captured ops that Stretto cannot compile, at their line of the model."""

from __future__ import annotations

import torch
from torch import fx

from ..captured import CaptureError, module_text, origin_of
from ..metadata import source_span

_PRODUCTS = frozenset(
    {
        torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default, torch.ops.aten.convolution.default,
    }
)  # fmt: skip


def refuse_random_ops(graph: fx.Graph) -> None:
    """Refuse random ops that `expand_random_ops` does not rewrite. Errors: E0217."""
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and _is_random(node):
            raise CaptureError(
                "E0217",
                f'"{node.target}"{module_text(node)} draws random numbers in a way that differs between plans',
                span=source_span(node),
                expected="a dropout, or rand, randn, randint, bernoulli and their like, without a generator",
                help="write it with torch.rand, pass the noise in as an input, or switch it off with model.eval()",
            )


def refuse_sparse_values(forward: fx.Graph) -> None:
    """Refuse sparse tensors of a forward, before its gradients are traced. Errors: E0230."""
    for node in forward.nodes:
        if _is_sparse(node):
            raise CaptureError(
                "E0230",
                f'"{node.target}"{module_text(node)} gives a sparse tensor',
                span=source_span(node),
                expected="dense tensors",
                help="write this part of the model with dense tensors",
            )


def refuse_sparse_gradients(graph: fx.Graph) -> None:
    """Refuse sparse tensors, such as the gradients of `nn.Embedding(..., sparse=True)`. Errors: E0230."""
    for node in graph.nodes:
        if _is_sparse(node):
            path = origin_of(node).module_path
            where = f'module "{path}"' if path else "an embedding"
            raise CaptureError(
                "E0230",
                f"the gradient of {where} is a sparse tensor",
                span=source_span(node),
                expected="dense tensors",
                help="build the embedding with sparse=False, and take an optimizer for dense gradients (Adam for "
                "SparseAdam)",
            )


def refuse_mixed_products(graph: fx.Graph) -> None:
    """Refuse matrix products of mixed dtypes, which fail only at run time. Errors: E0224."""
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in _PRODUCTS:
            continue
        values = [operand.meta.get("val") for operand in node.all_input_nodes]
        dtypes = {operand.dtype for operand in values if isinstance(operand, torch.Tensor)}
        if len(dtypes) > 1:
            names = " by ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise CaptureError(
                "E0224",
                f"forward multiplies {names}{module_text(node)}",
                span=source_span(node),
                expected="one dtype on both sides of a matrix product",
                help="convert the input, such as x.to(weight.dtype), or the model, such as model.double()",
            )


def refuse_unknown_operators(graph: fx.Graph) -> None:
    """Refuse higher-order operators such as `torch.cond` and `flex_attention`. Errors: E0226."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(
                "E0226",
                f'the operator "{node.target.__name__}" cannot be captured',
                span=source_span(node),
                expected="tensor ops only",
                help="write it with plain tensor ops: torch.where for torch.cond, a Python loop for while_loop",
            )


def _is_sparse(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.layout is not torch.strided


def _is_random(node: fx.Node) -> bool:
    """Whether the op is random; attention is tagged as random, but is so only with dropout."""
    assert isinstance(node.target, torch._ops.OpOverload)
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.name in ("dropout_p", "p"):
            value = (
                node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            )
            return bool(value)
    return True
