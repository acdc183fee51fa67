"""Random numbers on one rank: it draws its part of the tensor, in any placement, without communication."""

from __future__ import annotations

from ...ir.bindings import Value
from ...ir.operations import Call
from ...ir.placement import Placement
from ...ir.types import TensorType
from .emitter import LocalEmitter, local_type

RANDOM = "nn.random"


def draw(call: Call, operands: list[Value], result: TensorType, placement: Placement, emitter: LocalEmitter) -> Value:
    """This rank's part of `nn.random`, whose result has the global type `result`, in `placement`.

    `operands` are the call's local values: the RNG state, the op's index, and maybe the tensor `like`.
    """
    local = local_type(result.placed(placement, emitter.mesh), emitter.mesh)
    axes = [",".join(dim_axes) for dim_axes in placement.dims]
    below = call.args[4] if len(call.args) > 4 else None
    return emitter.op("comm.random", *operands[:2], list(result.shape), axes, list(local.shape), below, type=local)
