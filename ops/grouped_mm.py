"""`stretto::grouped_mm`, the product of rows in groups with one matrix for each group, in every floating dtype.

`stretto::grouped_outer_products` (a (S, M), b (S, N), offs (E)) -> (E, M, N) sums the outer products of each group.

Mixtures of experts call it: the rows of `input` (S, K) are sorted by expert, group e ends before row `offs[e]`, and
each row is multiplied by its group's matrix in `weight` (E, K, N). Rows behind the last group give zeros. Torch's own
kernel does not take float64, and other libraries register ops of their own for that; capture writes them all as this
one (`frontend/graph/grouped_products.py`), so that a program runs where these libraries are not installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("stretto", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch leaves it untyped
SCHEMAS = (
    "grouped_mm(Tensor input, Tensor weight, Tensor offs) -> Tensor",
    "grouped_mm_backward(Tensor input, Tensor weight, Tensor offs, Tensor grad_output) -> (Tensor, Tensor)",
    "grouped_outer_products(Tensor a, Tensor b, Tensor offs) -> Tensor",
)
"""The second gives the gradients of `input` and of `weight`, the third that of `weight` alone."""


def _groups(offs: Tensor) -> Iterator[tuple[int, slice]]:
    """Each group that has rows, and its rows."""
    start = 0
    for group, end in enumerate(offs.tolist()):
        if end > start:
            yield group, slice(start, end)
            start = end


def _product(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    result = input.new_zeros(input.shape[0], weight.shape[2])
    for group, rows in _groups(offs):
        torch.mm(input[rows], weight[group], out=result[rows])
    return result


def _gradients(input: Tensor, weight: Tensor, offs: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
    grad_input, grad_weight = torch.zeros_like(input), torch.zeros_like(weight)
    for group, rows in _groups(offs):
        torch.mm(grad_output[rows], weight[group].T, out=grad_input[rows])
        torch.mm(input[rows].T, grad_output[rows], out=grad_weight[group])
    return grad_input, grad_weight


def _outer_products(a: Tensor, b: Tensor, offs: Tensor) -> Tensor:
    result = a.new_zeros(offs.shape[0], a.shape[1], b.shape[1])
    for group, rows in _groups(offs):
        torch.mm(a[rows].T, b[rows], out=result[group])
    return result


def _save_operands(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _derivative(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
    return (*torch.ops.stretto.grouped_mm_backward(*ctx.saved_tensors, grad_output), None)


for _schema in SCHEMAS:
    _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]
torch.library.impl("stretto::grouped_mm", ("CPU", "CUDA"), _product, lib=_LIBRARY)
torch.library.impl("stretto::grouped_mm_backward", ("CPU", "CUDA"), _gradients, lib=_LIBRARY)
torch.library.impl("stretto::grouped_outer_products", ("CPU", "CUDA"), _outer_products, lib=_LIBRARY)
torch.library.register_fake(
    "stretto::grouped_mm", lambda input, weight, offs: input.new_empty(input.shape[0], weight.shape[2]), lib=_LIBRARY
)
torch.library.register_fake(
    "stretto::grouped_mm_backward",
    lambda input, weight, offs, grad_output: (torch.empty_like(input), torch.empty_like(weight)),
    lib=_LIBRARY,
)
torch.library.register_fake(
    "stretto::grouped_outer_products",
    lambda a, b, offs: a.new_empty(offs.shape[0], a.shape[1], b.shape[1]),
    lib=_LIBRARY,
)
torch.library.register_autograd("stretto::grouped_mm", _derivative, setup_context=_save_operands, lib=_LIBRARY)

GROUPED_MM: torch._ops.OpOverload = torch.ops.stretto.grouped_mm.default
