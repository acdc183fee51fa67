"""Trace batch norms with `momentum=None`, whose running statistics average over all batches so far.

Torch reads the count of batches into Python to divide by it; a graph must divide by the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def cumulative_norms_traced(model: nn.Module) -> Iterator[None]:
    """Inside, such norms compute the same without reading a tensor's value."""
    norms = [norm for norm in model.modules() if isinstance(norm, _BatchNorm) and _averages(norm)]
    for norm in norms:
        norm.__dict__["forward"] = partial(_normalized, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["forward"]


def _averages(norm: _BatchNorm) -> bool:
    plain = type(norm).forward is _BatchNorm.forward and "forward" not in vars(norm)
    return plain and norm.training and norm.momentum is None and norm.num_batches_tracked is not None


def _normalized(norm: _BatchNorm, input: Tensor) -> Tensor:
    """Batch norm in training: with n batches so far, statistics become (1 - 1/n) * old + 1/n * this batch's.

    The argument has the name that it has in torch, as a norm that is the whole model is called by keyword.
    """
    norm._check_input_dim(input)  # type: ignore[no-untyped-call]
    old_mean, old_var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert old_mean is not None and old_var is not None and count is not None, (
        "running statistics are all present or all absent"
    )
    count.add_(1)
    mean, var = torch.zeros_like(old_mean), torch.ones_like(old_var)
    result = F.batch_norm(input, mean, var, norm.weight, norm.bias, training=True, momentum=1.0, eps=norm.eps)
    share = 1 / count.to(old_mean.dtype)
    old_mean.copy_(old_mean + (mean - old_mean) * share)
    old_var.copy_(old_var + (var - old_var) * share)
    return result
