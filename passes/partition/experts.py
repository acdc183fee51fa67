"""Products by expert on a rank's rows and a rank's experts: their local form, with the axes that experts are cut over.

`route-rows` then writes out which rows go where.
"""

from __future__ import annotations

from math import ceil, prod

from ...ir.bindings import Value
from ...ir.collectives import EXPERT_LINEAR, EXPERT_OUTER_PRODUCTS
from ...ir.operations import Call
from ...ir.types import TensorType, from_mlir
from .emitter import LocalEmitter

PRODUCTS = {"nn.expert_linear": EXPERT_LINEAR, "nn.expert_outer_products": EXPERT_OUTER_PRODUCTS}
"""The local form of each product by expert."""


def local_product(call: Call, axes: tuple[str, ...], type_: TensorType, emitter: LocalEmitter) -> Value:
    """The local product of local operands, of the local type `type_`, with experts cut over `axes`."""
    is_linear = call.name == "nn.expert_linear"
    bound, capacity = call.args[3 if is_linear else 4 :]
    own = from_mlir(call.args[1].type).shape[0] if is_linear else type_.shape[0]
    rows = room(prod(from_mlir(call.args[2].type).shape), emitter.size(axes), bound)
    if capacity is not None and axes:
        rows = min(rows, own * capacity)
    count = () if is_linear else (own,)
    return emitter.op(PRODUCTS[call.name], *call.args[:3], list(axes), *count, rows, capacity is not None, type=type_)


def room(rows: int, ranks: int, bound: float | None) -> int:
    """The rows that a rank has room for, where each of `ranks` sends `rows`: all, or `bound` times the even share.

    >>> room(64, 4, None), room(64, 4, 1.5), room(64, 2, 9.0)
    (256, 96, 128)
    """
    return rows * ranks if bound is None or ranks == 1 else min(rows * ranks, ceil(rows * bound))
