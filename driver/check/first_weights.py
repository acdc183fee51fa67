"""Compare a program's first weights with those of its target, by name.

Other checks give parameters random values, so they do not see these. If two names in a folder's weights file are
exchanged, the program is right and trains another model than its author's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...runtime.checks.report import WEIGHTS, CheckRow, Verdict
from ...runtime.program.program import Program
from .users_call import UsersCall

_UNSEEDED = "not compared: the target gives other values at each load"


def weight_rows(
    program: Program, model: nn.Module, call: UsersCall, again: nn.Module | None, changed: str
) -> list[CheckRow]:
    """A row for each parameter and buffer of which the program, or the target's `model` or `call`, has a first value.

    `again` is the target's model loaded a second time, where it could be: its values tell a target that draws other
    weights at each load. `changed` says that the target's file is another one than at the compile; empty if it is not.
    """
    own: dict[str, Tensor | None] = {**_tensors(model)}
    other = {} if again is None else _tensors(again)
    names = [argument.name for kind in ("parameter", "buffer", "state") for argument in program.of_kind(kind)]
    if not any(name in program.weights for name in names):
        return []
    own = {name: call.held(name) for name in names} | own
    return [
        _row(name, program.weights.get(name), own.get(name), other.get(name), changed) for name in dict.fromkeys(names)
    ]


def _row(name: str, held: Tensor | None, own: Tensor | None, other: Tensor | None, changed: str) -> CheckRow:
    if held is None or own is None:
        which = "the program" if held is None else "the target"
        return CheckRow(WEIGHTS, name, math.inf, Verdict.DIFFERS, f"{which} has no value for it")
    if _same(held, own):
        return CheckRow(WEIGHTS, name, 0.0, Verdict.EQUAL)
    error = _error(held, own)
    if other is not None and not _same(own, other):
        return CheckRow(WEIGHTS, name, error, Verdict.NOT_CHECKED, _UNSEEDED)
    if changed:
        return CheckRow(WEIGHTS, name, error, Verdict.NOT_CHECKED, f"not compared: {changed}")
    return CheckRow(WEIGHTS, name, error, Verdict.DIFFERS, "the first value is not the target's")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(_named(model))


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Under every name that a tied tensor has."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _same(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or one.is_floating_point() != two.is_floating_point():
        return False
    first, second = one.detach(), two.detach().to(one.dtype)
    return torch.equal(first, second) or torch.equal(first.nan_to_num(), second.nan_to_num())


def _error(held: Tensor, own: Tensor) -> float:
    """The largest difference, relative to the largest magnitude of the target's value."""
    if held.shape != own.shape or not held.numel():
        return math.inf
    difference = (held.detach().double() - own.detach().double()).abs().max()
    return float(difference) / (float(own.detach().double().abs().max()) or 1.0)
