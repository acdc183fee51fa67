"""`stretto::random`, the only random op in captured graphs: each element is a function of its position.

`expand_random_ops.py` rewrites torch's random ops to it before autograd, so that the reference, the joint graph and all
programs use the same numbers. Here it has only a shape function; the runtime and the interpreter implement it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..captured import CapturedTensor, InputKind

RANDOM_STATE = CapturedTensor("random state", InputKind.RANDOM, (), (2,), torch.int64, requires_grad=False, index=-1)
"""The input of a graph with random ops: the RNG state (seed, step)."""

_LIBRARY = torch.library.Library("stretto", "DEF")  # type: ignore[no-untyped-call]  # torch leaves both untyped
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "random(Tensor? state, Tensor? like, SymInt[]? size, int number, int? below) -> Tensor"
)


def _shaped(
    state: Tensor | None, like: Tensor | None, size: Sequence[int] | None, number: int, below: int | None
) -> Tensor:
    shape = like.shape if like is not None else size
    assert shape is not None, "a random op has a shape"
    return torch.empty(shape, dtype=torch.int64 if below is None else torch.bool, device="cpu")


torch.library.register_fake("stretto::random", _shaped, lib=_LIBRARY)

NUMBER = 3
"""The index of the argument `number`."""
RANDOM: torch._ops.OpOverload = torch.ops.stretto.random.default
"""Uniform words in [0, 2^32), int64, or with `below` whether each is below it; shaped as `like`, else as `size` says.

`number` is the index of the random op in its graph. `state` is None until capture passes the graph's input.
"""
