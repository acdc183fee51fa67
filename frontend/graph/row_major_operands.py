"""Make the operand of a determinant contiguous in the forward, before autograd.

Before                        After
  %d = linalg_det(%x)           %c = contiguous(%x)
                                %d = linalg_det(%c)

torch factors the transpose of a contiguous matrix and the matrix itself otherwise, and the derivative that is traced
solves with the one that the strides of the trace say. Values of the IR have no strides: programs and the interpreter
give these ops contiguous operands, and so does the trace. Source: `_linalg_det` in ATen/native/BatchLinearAlgebra.cpp.
"""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten
_DETERMINANTS = (
    aten.linalg_det.default, aten.det.default, aten._linalg_det.default, aten.logdet.default,
    aten.linalg_slogdet.default, aten.slogdet.default, aten._linalg_slogdet.default,
)  # fmt: skip


def make_determinants_row_major(graph: fx.Graph) -> None:
    """Rewrite a forward before autograd in place."""
    for target in _DETERMINANTS:
        for node in graph.find_nodes(op="call_function", target=target):
            source = node.args[0]
            with graph.inserting_before(node):
                operand = graph.call_function(aten.contiguous.default, (source,))
            operand.meta = {**node.meta, "val": source.meta["val"]}
            node.args = (operand, *node.args[1:])
