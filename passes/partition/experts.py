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
    bound = call.args[-1] if isinstance(call.args[-1], float) else None
    count = () if call.name == "nn.expert_linear" else (type_.shape[0],)
    rows = room(prod(from_mlir(call.args[2].type).shape), emitter.size(axes), bound)
    return emitter.op(PRODUCTS[call.name], *call.args[:3], list(axes), *count, rows, type=type_)


def room(rows: int, ranks: int, bound: float | None) -> int:
    """The rows that a rank has room for, where each of `ranks` sends `rows`: all, or `bound` times the even share.

    >>> room(64, 4, None), room(64, 4, 1.5), room(64, 2, 9.0)
    (256, 96, 128)
    """
    return rows * ranks if bound is None or ranks == 1 else min(rows * ranks, ceil(rows * bound))
