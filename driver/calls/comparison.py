"""`stretto compile TARGET --check`, second part: the target's model through `stretto.compile` beside eager PyTorch."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
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
from ...runtime.checks.program_check import is_of_the_program
from ...runtime.checks.recording import Recording
from ...runtime.checks.report import CALLS, PROCESS, TOLERANCES, CheckRow, Verdict, raised_row
from ...runtime.checks.rounding import Changes, changes, largest_changes, perturbation
from ...runtime.program.program import Program
from ..model.decorator import compile
from .arguments import Arguments, differentiated, runs_in_eval_mode
from .changed_state import rows_of_changes
from .constants import varied_constants
from .invalid_indices import rows_of_invalid_indices
from .loop import Loop
from .modes import other_mode
from .repeats import rows_of_repeats
from .roles import Roles, roles_by_size
from .sides import CompiledSide, EagerSide, Side
from .states import StateSteps

_LEFT = "a call of the compiled model changes it for the rest of the process"
_PERTURBATIONS = 2
_STEPS = 1
_COMPILED = "the model of stretto.compile"


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
    evaluates = trains and runs_in_eval_mode(loaded.model, loaded.inputs)
    loop = Loop(
        loaded.inputs, trains, varied_constants(loaded.model, loaded.inputs), evaluates,
        differentiated(loaded.model, loaded.inputs) if trains else None, other_mode(loaded.model, loaded.inputs),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the plan says to no effect was said when the program was compiled
        try:
            side = CompiledSide(compile(copy.deepcopy(loaded.model), plan=plan))
            found = loop.record(side)
        except StrettoError as error:
            if is_of_the_program(error):
                return Calls((raised_row(_COMPILED, error),))
            return _unjudged(f"it refuses a call: {error.code}, {error.message}")
        except Exception as error:  # any: what is under check may be wrong in any way
            return Calls((raised_row(_COMPILED, error),))
        eager = _Eager(loaded.model, loop, side, compute_dtype(plan), roles)
        rows = [*eager.rows(found), *rows_of_invalid_indices(side.model, loaded.model, loaded.inputs, trains=trains)]
        rows += rows_of_changes(side.model, loaded.model, loaded.inputs, trains=trains)
        rows += rows_of_repeats(side.model, loaded.model, loaded.inputs, trains=trains)
        rows += [] if trains else _rows_of_states(loaded.model, loaded.inputs, plan, side, roles)
        reasons = "; ".join(f"{phase}: {why}" for phase, why in side.refused.items())
        refused = _unjudged(f"it refuses those from {reasons}").rows if reasons else ()
        return Calls((*rows, *refused), roles)


def _rows_of_states(model: nn.Module, arguments: Arguments, plan: Plan, before: Side, roles: Roles) -> list[CheckRow]:
    """The rows of steps in which the buffers that the forward writes are states (`states.py`)."""
    own = {name for name, _ in model.named_buffers()}
    changed = (buffer.name for buffer in before.facts[0].program.results_of_kind("buffer"))
    written = tuple(name for name in changed if name in own)
    if not written:
        return []
    steps = StateSteps.of(model, arguments, written)
    try:
        side = CompiledSide(compile(copy.deepcopy(model), plan=plan, states=written))
        found = steps.record(side)
    except StrettoError as error:
        return list(_unjudged(f"it refuses the steps with states: {error.code}, {error.message}").rows)
    return _Eager(model, steps, side, compute_dtype(plan), roles).rows(found)


@dataclass(frozen=True)
class _Eager:
    """The eager side of the loop."""

    model: nn.Module
    loop: Loop | StateSteps
    compiled: Side
    """After its calls."""
    compute: torch.dtype | None
    roles: Roles

    def rows(self, found: Recording) -> list[CheckRow]:
        """The rows of what the compiled model computed."""
        side = self._side(_itself)
        values = self._rows_of_values(found, self._record(side))
        others = [*_rows_of_differentiated(self.compiled, side), *_rows_of_structures(self.compiled, side)]
        return [*values, *others, *_rows_of_side(self.compiled, side)]

    def _rows_of_values(self, found: Recording, own: Recording) -> list[CheckRow]:
        dtype = self._program.manifest.dtype
        found, own = _without_common_infinities(found, own)
        if dtype not in TOLERANCES:
            short = WithinEagerError(self._record(self._side(_itself, raised=True)), own, dtype, _STEPS)
            rows = short.rows(found)
            return (
                rows if not any(row.differs for row in rows) else replace(short, elsewhere=self._errors()).rows(found)
            )
        judge = WithinTolerance(own, dtype, TOLERANCES[dtype], _STEPS, {})
        rows = judge.rows(found)
        if all(row.verdict is not Verdict.DIFFERS for row in rows):
            return rows
        return replace(judge, changes=self._changes(own)).rows(found)

    def _changes(self, own: Recording) -> Changes:
        """The largest change of each tensor over some perturbations of parameters and inputs."""
        moves = (perturbation(self._program, seed) for seed in range(_PERTURBATIONS))
        return largest_changes(
            changes(own, self._record(self._side(moved), _altered(self.loop.arguments, moved))) for moved in moves
        )

    def _errors(self) -> Changes:
        """The largest error of eager mode in each tensor over some perturbations of parameters and inputs."""
        moves = (perturbation(self._program, seed) for seed in range(_PERTURBATIONS))
        sides = ((_altered(self.loop.arguments, moved), moved) for moved in moves)
        return largest_changes(
            changes(self._record(self._side(moved, raised=True), arguments), self._record(self._side(moved), arguments))
            for arguments, moved in sides
        )

    @property
    def _program(self) -> Program:
        return self.compiled.facts[0].program

    def _side(self, moved: Callable[[Tensor], Tensor], *, raised: bool = False) -> EagerSide:
        """A side of its own, with moved parameters."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.copy_(moved(parameter))
        return EagerSide(model, self.compiled, self.compute, raised=raised, whole=self.roles.whole)

    def _record(self, side: EagerSide, arguments: Arguments | None = None) -> Recording:
        return replace(self.loop, arguments=arguments or self.loop.arguments).record(side)


def _rows_of_differentiated(compiled: Side, eager: EagerSide) -> list[CheckRow]:
    """A row for each output that may be differentiated on one side alone."""
    notes: dict[str, str] = {}
    for facts, differentiable in zip(compiled.facts, eager.differentiable, strict=True):
        for position in sorted({*facts.differentiated} ^ {*differentiable}):
            sides = ("the program", "eager mode") if position in facts.differentiated else ("eager mode", "the program")
            notes.setdefault(facts.names[position], "{} differentiates this output, and {} does not".format(*sides))
    return [
        CheckRow("output", f"{name} (differentiated)", math.inf, Verdict.DIFFERS, note) for name, note in notes.items()
    ]


def _rows_of_structures(compiled: Side, eager: EagerSide) -> list[CheckRow]:
    """A row for each way in which a result is not built as in eager mode, or has other plain values."""
    pairs = zip(compiled.facts, eager.structures, strict=True)
    notes = [own.difference(facts.structure) for facts, own in pairs if facts.structure is not None and own is not None]
    return [
        CheckRow("output", "result (structure)", math.inf, Verdict.DIFFERS, note)
        for note in dict.fromkeys(notes) if note
    ]  # fmt: skip


def _rows_of_side(compiled: Side, eager: EagerSide) -> list[CheckRow]:
    """Rows of what no tensor of one call shows."""
    moved = [name for name in compiled.moved_buffers if name not in eager.moved_buffers]
    memory = "eager mode writes into this buffer, and the program replaces it: a view of it keeps the old values"
    early = "gradients were reduced inside of no_sync"
    return [
        *(CheckRow("buffer", f"{name} (memory)", math.inf, Verdict.DIFFERS, memory) for name in moved),
        *(CheckRow("gradient", f"reductions ({phase})", math.inf, Verdict.DIFFERS, early) for phase in compiled.early),
        *(CheckRow(PROCESS, name, math.inf, Verdict.DIFFERS, _LEFT) for name in sorted(compiled.left_behind)),
    ]


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _altered(arguments: Arguments, moved: Callable[[Tensor], Tensor]) -> Arguments:
    def alter(leaf: Any) -> Any:
        is_floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return moved(leaf).requires_grad_(leaf.requires_grad) if is_floating else leaf

    altered: Arguments = pytree.tree_map(alter, dict(arguments))
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
