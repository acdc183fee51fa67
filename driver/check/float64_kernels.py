"""Formulas for functions without a float64 kernel in torch, so that models that call them can be checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...diagnostics import StrettoError


class InFloat64(TorchFunctionMode):
    """Inside, such a function calls its formula where the first operand is float64; gradients are the formula's.

    A conversion of a float64 tensor to `own`, the dtype that the model has outside, gives the tensor itself: without
    the mode it would be in that dtype already.
    """

    def __init__(self, own: torch.dtype | None = None) -> None:
        super().__init__()
        self._own = own

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        formula = _FORMULAS.get(func)
        if formula is not None and args and args[0].dtype == torch.float64:
            return formula(*args, **(kwargs or {}))
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64 and self._own is not None:
            if _NAMED.get(func) is self._own:
                return args[0]
            if func in (Tensor.to, Tensor.type):
                args = [self._raised(each) for each in args]
                kwargs = {key: self._raised(each) for key, each in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))

    def _raised(self, argument: Any) -> Any:
        return torch.float64 if argument is self._own else argument


def _grouped_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    *,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Each group's rows of (rows, in) times its matrix of (groups, in, out); group e ends before row offs[e]."""
    if offs is None or mat_a.dim() != 2 or mat_b.dim() != 3 or bias is not None:
        raise StrettoError(
            "E0342",
            "the check runs in float64, and the model calls grouped_mm in a form without a float64 kernel",
            expected="rows in groups (offs) times one matrix for each group, without a bias",
            help="compile with --dtype float32 to check it to 1e-4",
        )
    ends = [int(end) for end in offs]
    starts = [0, *ends[:-1]]
    products = [mat_a[start:end] @ mat_b[group] for group, (start, end) in enumerate(zip(starts, ends, strict=True))]
    return torch.cat([*products, mat_a.new_zeros(len(mat_a) - ends[-1], mat_b.shape[2])])


_NAMED = {Tensor.float: torch.float32, Tensor.half: torch.float16, Tensor.bfloat16: torch.bfloat16}
"""Functions that convert to the dtype of their name."""

_FORMULAS: dict[Any, Callable[..., Tensor]] = {
    torch.nn.functional.grouped_mm: _grouped_mm,
    torch._grouped_mm: _grouped_mm,
}
"""The formula of each function."""
