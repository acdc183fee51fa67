"""`stretto compile TARGET --check`, second part: the target's model through `stretto.compile` beside eager PyTorch."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...frontend.capture.precision import compute_dtype
from ...frontend.captured import Mode
from ...frontend.targets.load_target import load_target
from ...frontend.targets.target import Request
from ...runtime.checks.judging import WithinEagerError, WithinTolerance
from ...runtime.checks.recording import Recording
from ...runtime.checks.report import CALLS, TOLERANCES, CheckRow, Verdict
from ...runtime.checks.rounding import Changes, changes, largest_changes, perturbation
from ...runtime.program.program import Program
from ..model.compiled_module import program_of
from ..model.decorator import compile
from .arguments import two_constants
from .invalid_indices import rows_of_invalid_indices
from .loop import Loop
from .roles import Roles, roles_by_size
from .sides import CallFacts, CompiledSide, EagerSide

_PERTURBATIONS = 2
_STEPS = 1


@dataclass(frozen=True)
class Calls:
    """What the calls gave."""

    rows: tuple[CheckRow, ...]
    """One for each tensor of each call (`loop.py`); or one that says why no call was compared."""
    roles: Roles = Roles()


def compare_calls(target: str, request: Request, plan: Plan) -> Calls:
    """Make the calls on both sides. The target has weights. Errors: those of running the model."""
    loaded = load_target(target, request)
    try:
        copy.deepcopy(loaded.model)
    except (RuntimeError, TypeError) as error:
        return _unjudged(f"the model cannot be copied: {error}")
    roles = roles_by_size(loaded.model, loaded.inputs, plan)
    trains = request.mode is Mode.TRAIN
    loop = Loop(loaded.inputs, trains, two_constants(loaded.model, loaded.inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the plan says to no effect was said when the program was compiled
        try:
            side = CompiledSide(compile(copy.deepcopy(loaded.model), plan=plan))
            found = loop.record(side)
        except StrettoError as error:
            return _unjudged(f"it refuses a call: {error.code}, {error.message}")
        eager = _Eager(loaded.model, loop, program_of(side.model), side.facts, compute_dtype(plan), roles)
        rows = eager.rows(found)
        return Calls((*rows, *rows_of_invalid_indices(side.model, loaded.model, loaded.inputs)), roles)


@dataclass(frozen=True)
class _Eager:
    """The eager side of the loop."""

    model: nn.Module
    loop: Loop
    program: Program
    facts: list[CallFacts]
    compute: torch.dtype | None
    roles: Roles

    def rows(self, found: Recording) -> list[CheckRow]:
        """The rows of what the compiled model computed."""
        dtype, own = self.program.manifest.dtype, self._record(_itself)
        found, own = _without_common_infinities(found, own)
        if dtype not in TOLERANCES:
            return WithinEagerError(self._record(_itself, raised=True), own, dtype, _STEPS).rows(found)
        judge = WithinTolerance(own, dtype, TOLERANCES[dtype], _STEPS, {})
        rows = judge.rows(found)
        if all(row.verdict is not Verdict.DIFFERS for row in rows):
            return rows
        return replace(judge, changes=self._changes(own)).rows(found)

    def _changes(self, own: Recording) -> Changes:
        """The largest change of each tensor over some perturbations of parameters and inputs."""
        moves = (perturbation(self.program, seed) for seed in range(_PERTURBATIONS))
        return largest_changes(changes(own, self._record(moved)) for moved in moves)

    def _record(self, moved: Callable[[Tensor], Tensor], *, raised: bool = False) -> Recording:
        model, arguments = copy.deepcopy(self.model), _altered(self.loop.arguments, moved)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.copy_(moved(parameter))
        side = EagerSide(model, self.program, self.facts, self.compute, raised=raised, whole=self.roles.whole)
        return replace(self.loop, arguments=arguments).record(side)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _altered(arguments: Mapping[str, Any], moved: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    def alter(leaf: Any) -> Any:
        is_floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return moved(leaf).requires_grad_(leaf.requires_grad) if is_floating and moved is not _itself else leaf

    altered: dict[str, Any] = pytree.tree_map(alter, dict(arguments))
    return altered


def _without_common_infinities(found: Recording, own: Recording) -> tuple[Recording, Recording]:
    """Both with zeros where both have the same infinity or NaN, such as in masked logits, which are right."""
    pairs = [(found.outputs, own.outputs), (found.gradients, own.gradients), (found.buffers, own.buffers)]
    for one, other in pairs:
        for name in one.keys() & other.keys():
            a, b = one[name], other[name]
            if a.shape == b.shape and b.is_floating_point() and not bool(b.isfinite().all()):
                same = (a == b) & ~b.isfinite() | (a.isnan() & b.isnan())
                one[name], other[name] = (tensor.masked_fill(same, 0.0) for tensor in (a, b))
    return found, own


def _unjudged(note: str) -> Calls:
    return Calls((CheckRow(CALLS, "stretto.compile", math.inf, Verdict.NOT_CHECKED, note),))
