"""What a captured graph may not contain."""

from __future__ import annotations

import torch
from torch import fx

from .captured import CaptureError, origin_of
from .metadata import source_span


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
