"""Compare where a program has its parameters with what the plan says, statement by statement.

Values do not show a statement that is read wrongly: any placement computes the same. So this module shares no code with
`dsl/resolve.py` and `dsl/globs.py`; it takes from `dsl/` the statements, as parsed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from ...dsl.plan import Plan
from ...dsl.shard import Dim, Role, ShardParameters, StoreParameters
from ...dsl.zero import Zero
from ...runtime.checks.report import PLACEMENT, CheckRow, Verdict
from ...runtime.program.program import Program
from ...runtime.program.records import Input

Cuts = Mapping[int, tuple[str, ...]]
"""By dim: the axes that shard it, outermost first; axes of one rank are left out."""
_TRANSPOSED = "transformers.pytorch_utils.Conv1D"
"""The class of the linear layers whose weight is (in, out), as in GPT-2; another class of this name is none."""


def placement_rows(program: Program, plan: Plan, model: nn.Module) -> list[CheckRow]:
    """A row for each parameter of the program that is sharded otherwise than the plan says."""
    rows = []
    for parameter in program.of_kind("parameter"):
        found, expected = _cuts_of(program, parameter), _cuts_said(plan, model, parameter)
        if found != expected:
            note = f"the program has it {_text(found)}; the plan says {_text(expected)}"
            rows.append(CheckRow(PLACEMENT, parameter.name, math.inf, Verdict.DIFFERS, note))
    return rows


def _cuts_of(program: Program, parameter: Input) -> Cuts:
    sizes = program.mesh.sizes
    cuts = {shard.dim: tuple(axis for axis in shard.axes if sizes[axis] > 1) for shard in parameter.shards}
    return {dim: axes for dim, axes in cuts.items() if axes}


def _cuts_said(plan: Plan, model: nn.Module, parameter: Input) -> Cuts:
    """The last `shard` statement that matches decides; the last `store` or `zero` adds its axes inside of those."""
    sizes = dict(plan.mesh.axes)
    axes_of_dim: dict[int, tuple[str, ...]] = {}
    for kinds in (ShardParameters, StoreParameters | Zero):
        statements = [s for s in plan.statements if isinstance(s, kinds)]
        decided = _decided(statements, model, parameter, axes_of_dim, sizes)
        for axis, dim in decided.items():
            if sizes[axis] > 1:
                axes_of_dim[dim] = (*axes_of_dim.get(dim, ()), axis)
    return axes_of_dim


def _decided(
    statements: Sequence[ShardParameters | StoreParameters | Zero],
    model: nn.Module,
    parameter: Input,
    computed: Cuts,
    sizes: Mapping[str, int],
) -> Mapping[str, int]:
    """By axis, in the statement's order, the dim that the last statement shards that matches one of the names."""
    for statement in reversed(statements):
        for name in (parameter.name, *parameter.aliases):
            if parameter.shape and any(_covers(pattern, name) for pattern in statement.patterns):
                if isinstance(statement, Zero):
                    return _cut_by_zero(statement, parameter, computed, sizes)
                dim = _dim(statement, model, name, len(parameter.shape))
                return {} if dim is None else dict.fromkeys(statement.axes, dim)
    return {}


def _cut_by_zero(statement: Zero, parameter: Input, computed: Cuts, sizes: Mapping[str, int]) -> Mapping[str, int]:
    """The longest dim that all ranks divide, rather one that nothing else cuts; else dim 0."""
    held = {axis for axes in computed.values() for axis in axes}
    left = [axis for axis in statement.axes if axis not in held]
    shape = parameter.shape
    if 4 * math.prod(shape) < statement.least_bytes:
        return {}
    ranks = {d: math.prod(sizes[axis] for axis in (*left, *computed.get(d, ()))) for d in range(len(shape))}
    dividing = [d for d in ranks if not shape[d] % ranks[d]]
    candidates = [d for d in dividing if not computed.get(d)] or dividing or [0]
    longest = max(shape[d] for d in candidates)
    return dict.fromkeys(left, next(d for d in candidates if shape[d] == longest))


def _covers(pattern: str, name: str) -> bool:
    """Whether a glob is of a parameter's name, or of that of the module that has it."""
    names = (name, name[: name.rindex(".")] if "." in name else "")
    return any(re.fullmatch(_expression(pattern), each) is not None for each in names)


def _expression(pattern: str) -> str:
    return "".join(_expressions(pattern))


def _expressions(pattern: str) -> Iterator[str]:
    """A glob as a regular expression, piece by piece; braces may be nested."""
    depth = position = 0
    while position < len(pattern):
        character = pattern[position]
        end = pattern.find("]", position + 2) if character == "[" else -1
        if end > 0:
            inside = pattern[position + 1 : end].replace("\\", "\\\\")
            yield f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
            position = end
        elif character in "{}":
            depth += 1 if character == "{" else -1
            yield "(?:" if character == "{" else ")"
        elif character == "," and depth:
            yield "|"
        else:
            yield {"*": ".*", "?": "."}.get(character, re.escape(character))
        position += 1


def _dim(statement: ShardParameters | StoreParameters, model: nn.Module, name: str, rank: int) -> int | None:
    """The dim that a statement shards of a parameter; none of the bias of a layer sharded by its rows."""
    match statement.layout:
        case Dim(number):
            return number + rank if number < 0 else number
        case Role.ROWS:
            return None if rank == 1 else 1 - _outputs(model, name)
        case _:
            return 0 if rank == 1 else _outputs(model, name)


def _outputs(model: nn.Module, name: str) -> int:
    """The dim of a weight that has a layer's outputs; of an embedding that of its words."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return int(any(f"{kind.__module__}.{kind.__qualname__}" == _TRANSPOSED for kind in type(owner).__mro__))


def _text(cuts: Cuts) -> str:
    parts = [f"dim {dim} over {', '.join(axes)}" for dim, axes in sorted(cuts.items())]
    return " and ".join(parts) or "whole on every rank"
