"""Torch's op of a name, and whether it is pointwise: by torch's tag, or by a list of those that have none."""

from __future__ import annotations

from functools import cache

import torch

UNTAGGED = (
    "floor_divide.default", "floor_divide.Scalar", "fill.Scalar", "fill.Tensor", "copy.default", "masked_fill.Tensor",
    "rsub.Tensor", "isin.Tensor_Scalar", "hardswish.default", "log_sigmoid_forward.default", "_prelu_kernel.default",
    "softplus_backward.default", "leaky_relu_backward.default", "hardswish_backward.default",
    "hardsigmoid_backward.default", "hardshrink_backward.default", "softshrink_backward.default",
    "elu_backward.default", "hardtanh_backward.default", "log_sigmoid_backward.default",
    "mish_backward.default", "where.ScalarOther", "where.ScalarSelf",
    "_prelu_kernel_backward.default", "_masked_scale.default",
)  # fmt: skip
"""Pointwise ops of aten without torch's tag."""


@cache
def overload(op: str) -> torch._ops.OpOverload | None:
    """The torch op called `op` ("aten.mm.default"); None where torch has none of that name."""
    namespace, _, rest = op.partition(".")
    name, _, overload_name = rest.rpartition(".")
    packet = getattr(getattr(torch.ops, namespace), name, None) if name else None
    op_overload = getattr(packet, overload_name, None)
    return op_overload if isinstance(op_overload, torch._ops.OpOverload) else None


def is_pointwise(op: str) -> bool:
    """Whether each element of an op's result is a function of the same element of its operands, broadcast."""
    known = overload(op)
    return op.removeprefix("aten.") in UNTAGGED or (known is not None and torch.Tag.pointwise in known.tags)
