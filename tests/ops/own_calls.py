"""Calls of the ops whose arguments depend on each other, so that none can be guessed from their schemas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .layouts import OpCall


def _f(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def _i(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(high))


_BATCH_NORM = (_f(4, 3, 5, 5), _f(3), _f(3))
_Q = (_f(2, 3, 6, 4), _f(2, 3, 6, 4) + 1, _f(2, 3, 6, 4) * 2)


def _bag() -> tuple[Any, ...]:
    weight, indices, offsets = _f(7, 4), _i(7, 9), torch.tensor([0, 2, 5])
    return (weight, indices, offsets, *torch.ops.aten._embedding_bag.default(weight, indices, offsets)[1:])


def _attention_backward() -> tuple[Any, ...]:
    out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(*_Q)
    return (_f(2, 3, 6, 4) - 0.5, *_Q, out, logsumexp, 0.0, False)


def _weight_norm_backward() -> tuple[Any, ...]:
    v, g = _f(4, 5), _f(4, 1)
    _, norms = torch.ops.aten._weight_norm_interface.default(v, g)
    return (_f(4, 5), v, g, norms, 0)


def _group_norm_backward() -> tuple[Any, ...]:
    x, weight = _f(2, 4, 6), _f(4)
    _, mean, rstd = torch.ops.aten.native_group_norm.default(x, weight, None, 2, 4, 6, 2, 1e-5)
    return (_f(2, 4, 6) - 0.5, x, mean, rstd, weight, 2, 4, 6, 2, [True, True, True])


_OWN: dict[str, Callable[[], tuple[Any, ...]]] = {
    "aten._convolution.default": lambda: (
        _f(2, 3, 5, 5), _f(4, 3, 3, 3), _f(4), [1, 1], [1, 1], [1, 1], False, [0, 0], 1, False, False, True, True,
    ),
    "aten._embedding_bag_dense_backward.default": lambda: (
        _f(3, 4), *[_bag()[at] for at in (1, 3, 4, 5)], 7, False, 0, None,
    ),
    "aten._grouped_mm.default": lambda: (
        _f(8, 16).bfloat16(), _f(2, 16, 8).bfloat16(), torch.tensor([3, 8], dtype=torch.int32),
    ),
    "aten._int_mm.default": lambda: (_i(9, 32, 16).to(torch.int8), _i(7, 16, 16).to(torch.int8)),
    "aten._native_batch_norm_legit.no_stats": lambda: (*_BATCH_NORM, True, 0.1, 1e-5),
    "aten._native_batch_norm_legit_functional.default": lambda: (*_BATCH_NORM, _f(3), _f(3), True, 0.1, 1e-5),
    "aten._native_batch_norm_legit_no_training.default": lambda: (*_BATCH_NORM, _f(3), _f(3), 0.1, 1e-5),
    "aten._scaled_dot_product_flash_attention_for_cpu.default": lambda: _Q,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": _attention_backward,
    "aten._upsample_bicubic2d_aa_backward.default": lambda: (_f(1, 2, 3, 3), [3, 3], [1, 2, 6, 6], False),
    "aten._upsample_lanczos2d_aa_backward.default": lambda: (_f(1, 2, 3, 3), [3, 3], [1, 2, 6, 6], False),
    "aten._upsample_nearest_exact2d_backward.default": lambda: (_f(1, 2, 6, 6), [6, 6], [1, 2, 3, 3]),
    "aten._upsample_nearest_exact3d_backward.default": lambda: (_f(1, 2, 6, 6, 6), [6, 6, 6], [1, 2, 3, 3, 3]),
    "aten.upsample_nearest3d_backward.default": lambda: (_f(1, 2, 6, 6, 6), [6, 6, 6], [1, 2, 3, 3, 3]),
    "aten._weight_norm_interface.default": lambda: (_f(4, 5), _f(4, 1)),
    "aten._weight_norm_interface_backward.default": _weight_norm_backward,
    "aten.affine_grid_generator.default": lambda: (_f(2, 2, 3), [2, 3, 4, 5], False),
    "aten.div.Scalar_mode": lambda: (_f(3, 4) * 9, 2.0),
    "aten.fake_quantize_per_channel_affine_cachemask.default": lambda: (
        _f(3, 4).float(), _f(3).float(), torch.zeros(3, dtype=torch.int32), 0, -8, 7,
    ),
    "aten.native_group_norm.default": lambda: (_f(2, 4, 6), _f(4), _f(4), 2, 4, 6, 2, 1e-5),
    "aten.native_group_norm_backward.default": _group_norm_backward,
    "aten.norm.ScalarOpt_dtype": lambda: (_f(3, 4), 2),
    "aten.norm.ScalarOpt_dim_dtype": lambda: (_f(3, 4), 2, [1], True),
    "aten.scatter.reduce": lambda: (_f(4, 4), 0, _i(4, 4, 4), _f(4, 4)),
    "aten.scatter.value_reduce": lambda: (_f(4, 4), 0, _i(4, 4, 4), 0.5),
    "aten.view_as_complex_copy.default": lambda: (_f(3, 4, 2),),
    "stretto.grouped_mm.default": lambda: (_f(8, 6), _f(2, 6, 5), torch.tensor([3, 8])),
    "stretto.grouped_outer_products.default": lambda: (_f(8, 6), _f(8, 5), torch.tensor([3, 8])),
    "stretto.grouped_mm_backward.default": lambda: (
        _f(8, 6), _f(2, 6, 5), torch.tensor([3, 8]), _f(8, 5),
    ),
}  # fmt: skip
_KEYWORDS: dict[str, dict[str, Any]] = {
    "aten.div.Scalar_mode": {"rounding_mode": "floor"},
    "aten.norm.ScalarOpt_dtype": {"dtype": torch.float64},
    "aten.norm.ScalarOpt_dim_dtype": {"dtype": torch.float64},
    "aten.scatter.reduce": {"reduce": "add"},
    "aten.scatter.value_reduce": {"reduce": "add"},
}
OWN_OPS = frozenset(_OWN)
"""The ops that have arguments here."""


def own_call(name: str) -> OpCall:
    """The call of one of `OWN_OPS`."""
    return OpCall(name, _OWN[name](), _KEYWORDS.get(name, {}))
