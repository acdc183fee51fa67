"""The torch dtypes of the float formats that a plan names."""

from __future__ import annotations

import torch

from ..dsl.precision import FloatFormat

DTYPES = {
    FloatFormat.FP64: torch.float64,
    FloatFormat.FP32: torch.float32,
    FloatFormat.BF16: torch.bfloat16,
    FloatFormat.FP16: torch.float16,
}


def dtype_of(format: FloatFormat | None) -> torch.dtype | None:
    """Torch's name of a format; None for none.

    >>> dtype_of(FloatFormat.BF16)
    torch.bfloat16
    """
    return None if format is None else DTYPES[format]


def format_name(dtype: torch.dtype) -> str:
    """How a plan calls a dtype; torch's name where it has no word for it.

    >>> format_name(torch.float32)
    'fp32'
    """
    names = {known: str(format) for format, known in DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))
