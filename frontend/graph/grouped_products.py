"""Products of rows in groups, whoever registered them with torch, become `stretto::grouped_mm`.

Before                                                       After
  %y = transformers::grouped_mm_fallback(%x, %w, %ends)        %y = stretto::grouped_mm(%x, %w, %ends)
  %y = aten::_grouped_mm(%x, %w, %ends)                        %y = stretto::grouped_mm(%x, %w, %ends)

So one op has strategies, an idea of which rows belong to whom, and a kernel in float64, and a program needs no library
but torch. Other forms of torch's product (groups of the inner dim, a bias) stay as they are.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ...ops.grouped_mm import GROUPED_MM

_OF_TRANSFORMERS = "transformers::grouped_mm_fallback"
_OF_TORCH = "aten::_grouped_mm"


def write_grouped_products(graph: fx.Graph) -> None:
    """Rewrite a forward before autograd in place."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        name = getattr(getattr(node.target, "_schema", None), "name", None)
        if name == _OF_TRANSFORMERS or (name == _OF_TORCH and _has_rows_in_groups(node)):
            node.target = GROUPED_MM
            node.args = tuple(node.args[:3])
            node.kwargs = {}


def _has_rows_in_groups(node: fx.Node) -> bool:
    """Whether torch's product is of rows in groups times one matrix for each, without a bias or another dtype."""
    operands: list[Any] = [*node.args, *(None,) * 5]
    rows, matrices, offs, bias, dtype = operands[:5]
    if offs is None or bias is not None or dtype is not None or node.kwargs:
        return False
    return bool(rows.meta["val"].dim() == 2 and matrices.meta["val"].dim() == 3)
