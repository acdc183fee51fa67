"""The runtime's generator beside its definition, where the runs of a check do not get.

A check's forwards draw for small tensors, by the first few random ops. Here steps, numbers of random ops and indices of
elements lie beyond 8, 16 and 31 bits, and one tensor is larger than what the generator computes at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..philox import Part, RngState, draw
from ..program.program import Program
from .reference_draws import reference_draw
from .report import CheckRow, Verdict

_SEED = 0x9E3779B97F4A7C15
_BITS = (8, 16, 31)
_BEYOND = 1 << 40
"""Elements of a tensor of which a rank has a few."""
_LARGE = (1 << 17) + 9
"""Elements of a tensor that a rank has whole."""


def wrong_draws(program: Program) -> Iterator[CheckRow]:
    """A row for each draw that is not the definition's; none for a program that draws nothing."""
    if not program.of_kind("random"):
        return
    for bits in _BITS:
        large, first = (1 << bits) | 3, (1 << (bits + 4)) + 1
        state, part = RngState(_SEED, large).tensor(), Part((_BEYOND,), (first,), (9,))
        for what, number, step_state in (
            (f"step {large}", 3, state),
            (f"random op {large}", large, RngState(_SEED, 3).tensor()),
        ):
            if not torch.equal(draw(step_state, number, part), reference_draw(step_state, number, [9], None, first)):
                yield _differs(f"{what}, element {first}")
    state = RngState(_SEED, 3).tensor()
    if not torch.equal(draw(state, 3, Part.whole([_LARGE])), reference_draw(state, 3, [_LARGE], None)):
        yield _differs(f"a tensor of {_LARGE} elements")


def _differs(where: str) -> CheckRow:
    return CheckRow("generator", where, math.inf, Verdict.DIFFERS, "other random numbers than by the definition")
