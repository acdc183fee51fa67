"""A draw on one rank: the rank makes its part of the numbers, at any placement, without communication."""

from __future__ import annotations

from ...ir.bindings import Value
from ...ir.operations import Call
from ...ir.placement import Placement
from ...ir.types import TensorType
from .emitter import LocalEmitter, local_type

RANDOM = "nn.random"


def draw(call: Call, operands: list[Value], made: TensorType, placement: Placement, emitter: LocalEmitter) -> Value:
    """This rank's part of `nn.random`, whose result of type `made` (global) is wanted at `placement`.

    `operands` are the call's values on the rank: state, number, and maybe the tensor that it is used with.
    """
    local = local_type(made.placed(placement, emitter.mesh), emitter.mesh)
    axes = [",".join(each) for each in placement.dims]
    below = call.args[4] if len(call.args) > 4 else None
    return emitter.op("comm.random", *operands[:2], list(made.shape), axes, list(local.shape), below, type=local)
