"""In which precision a module is run: as its types say, or with every floating dtype raised to float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import torch


class Floats(StrEnum):
    """What becomes of floating dtypes; of those of casts and constants too."""

    AS_IS = "as is"
    FLOAT64 = "float64"

    def of(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that stands for `dtype`."""
        return torch.float64 if self is Floats.FLOAT64 and dtype.is_floating_point else dtype

    def raised(self, argument: Any) -> Any:
        """A constant argument of an operation with its dtypes (also in lists) replaced."""
        if isinstance(argument, torch.dtype):
            return self.of(argument)
        return [self.raised(a) for a in argument] if isinstance(argument, list) else argument

    @contextmanager
    def defaults(self) -> Iterator[None]:
        """Torch's default dtype, which factories and divisions of integers give, is float64 inside where wanted."""
        before = torch.get_default_dtype()
        if self is Floats.FLOAT64:
            torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
