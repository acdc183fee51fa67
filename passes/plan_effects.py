"""The effects of a plan's statements: which parameters and inputs each one shards, or why it shards none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..dsl.axes import NamedAxes
from ..dsl.communication.overlap import Overlap
from ..dsl.memory.nanobatches import Nanobatches
from ..dsl.memory.recompute import Recompute
from ..dsl.memory.split import Split
from ..dsl.parser import Statement
from ..dsl.pipeline import MICROBATCH_AXIS, Pipeline
from ..dsl.plan import Plan
from ..dsl.precision import Precision
from ..dsl.resolve import ParameterSharding, matches
from ..dsl.resolve_stored import Storage
from ..dsl.routing.experts import Experts
from ..dsl.schedule import WrittenSchedule
from ..dsl.shard import ShardActivations, ShardInputs, ShardParameters, StoreParameters
from ..dsl.zero import Zero
from .base import Remark, RemarkKind

_PASS = "place-arguments"
_NAMES_SHOWN = 3
_WITHOUT_AXES = (Precision, Pipeline, Recompute, Split, Nanobatches, Overlap)
"""Statements whose effect other passes report."""


@dataclass(frozen=True)
class Decisions:
    """A plan, and the placements of arguments that follow from it."""

    plan: Plan
    parameters: tuple[ParameterSharding, ...]
    inputs: tuple[Mapping[str, int], ...]
    """The dim that each axis shards, for each input that is the batch or that a statement names."""
    stored: Mapping[str, Storage]
    """For each parameter, by name: what `store` or `zero` adds to its placement."""
    replicated_inputs: tuple[str, ...]
    """The names of inputs that are replicated."""

    def effects(self) -> dict[str, str]:
        """By key of a statement: why it has no effect, empty if it has one; of activations only trivial axes."""
        effects: dict[str, str] = {}
        implied_axes = () if self.plan.implied is None else self.plan.implied.axes
        for index, statement in enumerate(self.plan.statements):
            if isinstance(statement, ShardParameters):
                effects[key_of(index)] = self._why_no_parameter(index, statement)
            elif isinstance(statement, WrittenSchedule):
                pipeline = self.plan.pipeline
                used = pipeline is not None and pipeline.schedule == statement.name
                effects[key_of(index)] = "" if used else "no pipeline names this schedule"
            elif isinstance(statement, NamedAxes):
                unused = statement.name not in self.plan.used_names and statement.axes != implied_axes
                effects[key_of(index)] = "no statement uses the name" if unused else ""
            elif isinstance(statement, _WITHOUT_AXES) or not statement.axes:
                continue
            elif isinstance(statement, Experts):
                effects[key_of(index)] = self._why_no_experts(statement)
            elif self._is_trivial(statement.axes):
                effects[key_of(index)] = _one_rank(statement.axes)
            elif isinstance(statement, StoreParameters | Zero):
                effects[key_of(index)] = "" if self._stored_by(statement) else self._why_not_stored(statement)
            elif isinstance(statement, ShardInputs):
                cut = any(set(statement.axes) & dims.keys() for dims in self.inputs)
                effects[key_of(index)] = "" if cut else "no input has the dim that it cuts"
        return effects

    def remarks(self) -> list[Remark]:
        """Remarks of what each statement shards, and of the inputs that stay whole."""
        implied = self.plan.implied
        remarks = [] if implied is None else [Remark(_PASS, RemarkKind.IMPLIED, str(implied), span=implied.span)]
        for statement in self.plan.statements:
            if isinstance(statement, ShardParameters):
                count, kind = len(self._cut(statement)), "parameters"
            elif isinstance(statement, StoreParameters | Zero):
                remarks += self._left_whole(statement)
                count, kind = len(self._stored_by(statement)), "stored parameters"
            elif isinstance(statement, Experts):
                count, kind = sum(p.experts is statement for p in self.parameters), "parameters of experts"
            elif isinstance(statement, ShardInputs):
                count, kind = sum(bool(set(statement.axes) & dims.keys()) for dims in self.inputs), "inputs"
            elif isinstance(statement, Pipeline):
                cut = [dims for dims in self.inputs if statement.per_microbatch or MICROBATCH_AXIS in dims]
                inputs = f"{len(cut)} input{'s' if len(cut) > 1 else ''}"
                message = f"{inputs} cut into {statement.microbatches} microbatches"
                remarks.append(Remark(_PASS, RemarkKind.APPLIED, message, span=statement.span))
                continue
            else:
                continue
            if count:
                axes = ", ".join(statement.axes)
                message = f"{count} {kind if count > 1 else _singular(kind)} cut over {axes}"
                remarks.append(Remark(_PASS, RemarkKind.APPLIED, message, span=statement.span))
        shared = any(self._size(axis) > 1 for axis in self.plan.data_axes)
        if self.replicated_inputs and (shared or self.plan.pipeline is not None):
            where = "on every rank" if shared else "for every microbatch"
            message = f"inputs without the batch's dim stay whole {where}: {_listed(self.replicated_inputs)}"
            remarks.append(Remark(_PASS, RemarkKind.MISSED, message))
        return remarks

    def idle_axes(self) -> list[Remark]:
        """A warning for every axis of more than one rank that shards no argument and no activation."""
        used = {axis for placed in self.parameters for axis in placed.dims} | {
            a for placed in self.inputs for a in placed
        }
        used |= {
            axis
            for statement in (*self.plan.activations, *self.plan.stored, *self.plan.experts)
            for axis in statement.axes
        }
        used |= {self.plan.pipeline.axis} if self.plan.pipeline is not None else set()
        return [
            Remark(
                _PASS,
                RemarkKind.WARNING,
                f'axis "{axis}" of the mesh cuts nothing: its {size} ranks compute the same; say what it shards',
                span=self.plan.mesh.span_of(axis),
            )
            for axis, size in self.plan.mesh.axes
            if size > 1 and axis not in used
        ]

    def _why_no_parameter(self, index: int, statement: ShardParameters) -> str:
        """Why a statement shards no parameter; empty if it shards one, or overrides an earlier statement."""
        decided = [parameter for parameter in self.parameters if any(s is statement for s in parameter.decided_by)]
        earlier = [s for s in self.plan.statements[:index] if isinstance(s, ShardParameters)]
        if any(matches(other, name) for other in earlier for parameter in decided for name in parameter.names):
            return ""
        if decided and self._is_trivial(statement.axes):
            return _one_rank(statement.axes)
        if decided:
            return "" if self._cut(statement) else f"what it matches has no {statement.layout} and stays whole"
        matched = [
            parameter for parameter in self.parameters if any(matches(statement, name) for name in parameter.names)
        ]
        lines = sorted({s.span.line for parameter in matched for s in parameter.decided_by if s.span})
        places = f" (line {', '.join(map(str, lines))})" if lines else ""
        return f"later statements decide for everything that it matches{places}"

    def _why_no_experts(self, statement: Experts) -> str:
        """Why a statement cuts no experts; empty if it cuts some."""
        if not any(parameter.experts is statement for parameter in self.parameters):
            return "later statements decide for everything that it matches"
        return _one_rank(statement.axes) if self._is_trivial(statement.axes) else ""

    def _cut(self, statement: ShardParameters) -> list[str]:
        """The parameters that a statement decides and shards."""
        return [
            parameter.name
            for parameter in self.parameters
            if parameter.dims and any(s is statement for s in parameter.decided_by)
        ]

    def _stored_by(self, statement: StoreParameters | Zero) -> list[str]:
        """The parameters that a statement stores in parts."""
        return [name for name, storage in self.stored.items() if storage.statement is statement and storage.dims]

    def _whole(self, statement: StoreParameters | Zero) -> list[str]:
        """The parameters that a statement decides about and stores as they are computed with."""
        return [name for name, storage in self.stored.items() if storage.statement is statement and not storage.dims]

    def _why_not_stored(self, statement: StoreParameters | Zero) -> str:
        """Why a statement stores no parameter in parts."""
        if self._whole(statement):
            return "what it matches is cut over its axes already, or too small for it"
        return "later statements decide for everything that it matches"

    def _left_whole(self, statement: StoreParameters | Zero) -> list[Remark]:
        """Remarks on parameters that a `zero` statement does not cut over all of its axes, and why."""
        if not isinstance(statement, Zero):
            return []
        dims = {parameter.name: parameter.dims for parameter in self.parameters}
        names_by_reason: dict[tuple[str, str], tuple[str, ...]] = {}
        for name, storage in self.stored.items():
            held = [axis for axis in statement.axes if axis in dims[name]]
            left = [axis for axis in statement.axes if axis not in (*held, *storage.dims)]
            if storage.statement is not statement:
                continue
            small = f"smaller than {statement.least_bytes} bytes in fp32"
            why = small if not storage.dims else "the ranks of all axes together divide no dim"
            for axes, reason in ((held, f"cut over {', '.join(held)} already"), (left, why)):
                if axes:
                    key = ", ".join(axes), reason
                    names_by_reason[key] = (*names_by_reason.get(key, ()), name)
        return [
            Remark(_PASS, RemarkKind.MISSED, f"not cut over {axes}: {_listed(names)} ({why})", span=statement.span)
            for (axes, why), names in names_by_reason.items()
        ]

    def _is_trivial(self, axes: tuple[str, ...]) -> bool:
        """Whether each of the axes has one rank."""
        return all(self._size(axis) == 1 for axis in axes)

    def _size(self, axis: str) -> int:
        return dict(self.plan.mesh.axes)[axis]


def _singular(kind: str) -> str:
    first, *rest = kind.split(" of ")
    return " of ".join((first.removesuffix("s"), *rest))


def _one_rank(axes: tuple[str, ...]) -> str:
    names = ", ".join(f'"{axis}"' for axis in axes)
    return f"{f'axis {names}' if len(axes) == 1 else f'each of the axes {names}'} has one rank in this mesh"


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


def key_of(index: int) -> str:
    """The key of the plan's statement at an index of `plan.statements`."""
    return f"statement {index}"


def activations_key(axis: str) -> str:
    """The key of the one statement that shards activations over an axis."""
    return f"activations over {axis}"


PRECISION_KEY = "precision"
"""The key of the statement about precision."""

OVERLAP_KEY = "overlap"
"""The key of the statement about overlap."""


def void_statements(plan: Plan, effects: Sequence[tuple[str, Mapping[str, str]]]) -> list[Remark]:
    """A warning for every statement whose effect passes report, if none reports one.

    `effects` holds, for each pass that ran, its name and `Report.effects`.
    """
    remarks = []
    for index, statement in enumerate(plan.statements):
        keys = _keys(index, statement)
        reasons = [(name, pass_effects[key]) for name, pass_effects in effects for key in keys if key in pass_effects]
        if reasons and all(reason for _, reason in reasons):
            name, reason = reasons[-1]
            subject = "this statement" if statement.span else f'"{statement}"'
            message = f"{subject} has no effect: {reason}"
            remarks.append(Remark(name, RemarkKind.WARNING, message, span=statement.span))
    return remarks


def _keys(index: int, statement: Statement) -> tuple[str, ...]:
    if isinstance(statement, ShardActivations):
        return (key_of(index), *(activations_key(axis) for axis in statement.axes))
    if isinstance(statement, Precision):
        return (key_of(index), PRECISION_KEY)
    if isinstance(statement, Overlap):
        return (key_of(index), OVERLAP_KEY)
    return (key_of(index),)
