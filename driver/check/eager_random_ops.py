"""Dropout in an eager model with the masks of a program: random ops are numbered in execution order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ...runtime.philox import Part, RngState, draw
from ...runtime.program.program import Program

_aten = torch.ops.aten


def draws_only_masks(program: Program) -> bool:
    """Whether all random ops of a program are masks, as in dropout; an eager model cannot repeat other ones."""
    code = (instruction for function in program.functions.values() for instruction in function.code)
    return all(instruction.kwargs["below"] is not None for instruction in code if instruction.op == "rank.random")


class ProgramDropout(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Inside, torch's dropout uses the masks of one forward of a program; on the CPU it always calls `bernoulli_`.

    The random ops are numbered in execution order, which is the order of the captured graph.
    """

    def __init__(self, state: RngState) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._state = state.tensor()
        self._index = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _aten.bernoulli_.float:
            return args[0].copy_(self._mask(*args))
        if func is _aten.bernoulli.p:
            return self._mask(*args).to(args[0].dtype)
        return func(*args, **(kwargs or {}))

    def _mask(self, like: torch.Tensor, probability: float = 0.5) -> torch.Tensor:
        self._index += 1
        return draw(self._state, self._index - 1, Part.whole(like.shape), round(probability * (1 << 32)))
