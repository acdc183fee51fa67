"""The precision of a run: as in the module's types, or with all floating dtypes raised to float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import torch


class Floats(StrEnum):
    """The treatment of floating dtypes, those of casts and constants included."""

    AS_IS = "as is"
    FLOAT64 = "float64"

    def of(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype used in place of `dtype`."""
        if self is Floats.AS_IS:
            return dtype
        return torch.float64 if dtype.is_floating_point else torch.complex128 if dtype.is_complex else dtype

    def raised(self, argument: Any) -> Any:
        """A constant argument with its dtypes replaced, also in lists."""
        if isinstance(argument, torch.dtype):
            return self.of(argument)
        return [self.raised(a) for a in argument] if isinstance(argument, list) else argument

    @contextmanager
    def defaults(self) -> Iterator[None]:
        """Inside, torch's default dtype, of factories and of integer division, is float64 if `FLOAT64`."""
        before = torch.get_default_dtype()
        if self is Floats.FLOAT64:
            torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
