"""Let an eager model drop what a program drops: its masks are drawn by place, in the order of its random ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ...runtime.philox import Part, RngState, draw
from ...runtime.program.program import Program

_aten = torch.ops.aten


def draws_masks_alone(program: Program) -> bool:
    """Whether all that a program draws are masks, as dropouts do; an eager model draws other numbers by itself."""
    code = (each for function in program.functions.values() for each in function.code)
    return all(each.kwargs["below"] is not None for each in code if each.op == "rank.random")


class PlacedDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Inside, torch's dropouts (on the CPU all of them fill a tensor by `bernoulli_`) draw as one forward of a program.

    They are numbered in the order in which they run, which is that of the captured graph.
    """

    def __init__(self, state: RngState) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._state = state.tensor()
        self._number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _aten.bernoulli_.float:
            return args[0].copy_(self._mask(*args))
        if func is _aten.bernoulli.p:
            return self._mask(*args).to(args[0].dtype)
        return func(*args, **(kwargs or {}))

    def _mask(self, like: torch.Tensor, probability: float = 0.5) -> torch.Tensor:
        self._number += 1
        return draw(self._state, self._number - 1, Part.whole(like.shape), round(probability * (1 << 32)))
