"""What a plan's statements about arguments did: which parameters and inputs each of them cut, or why it cut none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..dsl.parser import Statement
from ..dsl.pipeline import Pipeline
from ..dsl.plan import Plan
from ..dsl.precision import Precision
from ..dsl.resolve import ParameterSharding, matches
from ..dsl.schedule import WrittenSchedule
from ..dsl.shard import ShardActivations, ShardInputs, ShardParameters
from .base import Remark, RemarkKind

_PASS = "place-arguments"
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Decisions:
    """A plan, and what became of the arguments under it."""

    plan: Plan
    parameters: tuple[ParameterSharding, ...]
    inputs: tuple[Mapping[str, int], ...]
    """The dim that each axis cuts, for each input that has the batch."""
    whole: tuple[str, ...]
    """The names of the inputs that stay whole."""

    def effects(self) -> dict[str, str]:
        """By key of a statement: why it had no effect, empty where it had one; of the activations only what is sure."""
        found: dict[str, str] = {}
        for index, statement in enumerate(self.plan.statements):
            if isinstance(statement, ShardParameters):
                found[key_of(index)] = self._why_no_parameter(index, statement)
            elif isinstance(statement, WrittenSchedule):
                pipeline = self.plan.pipeline
                used = pipeline is not None and pipeline.schedule == statement.name
                found[key_of(index)] = "" if used else "no pipeline names this schedule"
            elif isinstance(statement, Precision | Pipeline):
                continue
            elif self._is_trivial(statement.axes):
                found[key_of(index)] = _one_rank(statement.axes)
            elif isinstance(statement, ShardInputs):
                cut = any(set(statement.axes) & each.keys() for each in self.inputs)
                found[key_of(index)] = "" if cut else "no input has the dim that it cuts"
        return found

    def remarks(self) -> list[Remark]:
        """What each statement cut, and the inputs that were left whole."""
        found = []
        for statement in self.plan.statements:
            if isinstance(statement, ShardParameters):
                count, what = len(self._cut(statement)), "parameters"
            elif isinstance(statement, ShardInputs):
                count, what = sum(bool(set(statement.axes) & each.keys()) for each in self.inputs), "inputs"
            elif isinstance(statement, Pipeline):
                inputs = f"{len(self.inputs)} input{'s' if len(self.inputs) > 1 else ''}"
                message = f"{inputs} cut into {statement.microbatches} microbatches"
                found.append(Remark(_PASS, RemarkKind.APPLIED, message, span=statement.span))
                continue
            else:
                continue
            if count:
                over = ", ".join(statement.axes)
                message = f"{count} {what if count > 1 else what[:-1]} cut over {over}"
                found.append(Remark(_PASS, RemarkKind.APPLIED, message, span=statement.span))
        shared = any(self._size(axis) > 1 for axis in self.plan.data_axes)
        if self.whole and (shared or self.plan.pipeline is not None):
            where = "on every rank" if shared else "for every microbatch"
            message = f"inputs without the batch's dim stay whole {where}: {_listed(self.whole)}"
            found.append(Remark(_PASS, RemarkKind.MISSED, message))
        return found

    def idle_axes(self) -> list[Remark]:
        """A warning for every axis of more than one rank that cuts no argument and no activation."""
        used = {axis for each in self.parameters for axis in each.dims} | {a for each in self.inputs for a in each}
        used |= {axis for statement in self.plan.activations for axis in statement.axes}
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
        """Empty where the statement cuts a parameter, or keeps one from what an earlier statement says of it."""
        decided = [each for each in self.parameters if any(s is statement for s in each.decided_by)]
        earlier = [s for s in self.plan.statements[:index] if isinstance(s, ShardParameters)]
        if any(matches(other, name) for other in earlier for each in decided for name in each.names):
            return ""
        if decided and self._is_trivial(statement.axes):
            return _one_rank(statement.axes)
        if decided:
            return "" if self._cut(statement) else f"what it matches has no {statement.layout} and stays whole"
        matched = [each for each in self.parameters if any(matches(statement, name) for name in each.names)]
        lines = sorted({s.span.line for each in matched for s in each.decided_by if s.span})
        places = f" (line {', '.join(map(str, lines))})" if lines else ""
        return f"later statements decide for everything that it matches{places}"

    def _cut(self, statement: ShardParameters) -> list[str]:
        """The parameters that a statement decided and cut."""
        return [each.name for each in self.parameters if each.dims and any(s is statement for s in each.decided_by)]

    def _is_trivial(self, axes: tuple[str, ...]) -> bool:
        """Whether each of the axes has one rank."""
        return all(self._size(axis) == 1 for axis in axes)

    def _size(self, axis: str) -> int:
        return dict(self.plan.mesh.axes)[axis]


def _one_rank(axes: tuple[str, ...]) -> str:
    names = ", ".join(f'"{axis}"' for axis in axes)
    return f"{f'axis {names}' if len(axes) == 1 else f'each of the axes {names}'} has one rank in this mesh"


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


def key_of(index: int) -> str:
    """The key of the plan's statement at a place in `plan.statements`."""
    return f"statement {index}"


def activations_key(axis: str) -> str:
    """The key of the one statement that shards activations over an axis."""
    return f"activations over {axis}"


PRECISION_KEY = "precision"
"""The key of the statement about precision."""


def void_statements(plan: Plan, effects: Sequence[tuple[str, Mapping[str, str]]]) -> list[Remark]:
    """A warning for every statement on which passes report, and none of them an effect.

    `effects` holds, for each pass that ran, its name and `Report.effects`.
    """
    found = []
    for index, statement in enumerate(plan.statements):
        keys = _keys(index, statement)
        said = [(name, each[key]) for name, each in effects for key in keys if key in each]
        if said and all(why for _, why in said):
            name, why = said[-1]
            what = "this statement" if statement.span else f'"{statement}"'
            message = f"{what} has no effect: {why}"
            found.append(Remark(name, RemarkKind.WARNING, message, span=statement.span))
    return found


def _keys(index: int, statement: Statement) -> tuple[str, ...]:
    if isinstance(statement, ShardActivations):
        return (key_of(index), *(activations_key(axis) for axis in statement.axes))
    if isinstance(statement, Precision):
        return (key_of(index), PRECISION_KEY)
    return (key_of(index),)
