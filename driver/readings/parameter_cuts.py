"""What the statements of a plan say of where a parameter or a buffer is stored."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from ...runtime.program.records import Input
from .plan_text import BUFFERS, EXPERTS, PARAMETERS, STORED, PlanText, Sharding
from .stated_cuts import Cuts

_TRANSPOSED = "transformers.pytorch_utils.Conv1D"
"""The class of the linear layers whose weight is (in, out), as in GPT-2; another class of this name is none."""


def cuts_of_parameter(plan: PlanText, model: nn.Module, parameter: Input) -> Cuts:
    """The last `shard` that matches decides; `experts` adds its axes outside of those, `store` or `zero` inside."""
    sizes = dict(plan.mesh)
    axes_of_dim: dict[int, tuple[str, ...]] = {}
    taken = _decided(plan.shardings(PARAMETERS), model, parameter, {}, sizes).values()
    for subject in (EXPERTS, PARAMETERS, STORED):
        decided = _decided(plan.shardings(subject), model, parameter, axes_of_dim, sizes, taken)
        for axis, dim in decided.items():
            if sizes[axis] > 1:
                axes_of_dim[dim] = (*axes_of_dim.get(dim, ()), axis)
    return axes_of_dim


def _decided(
    statements: Sequence[Sharding],
    model: nn.Module,
    parameter: Input,
    computed: Cuts,
    sizes: Mapping[str, int],
    taken: Collection[int] = (),
) -> Mapping[str, int]:
    """By axis, in the statement's order, the dim that the last statement shards that matches one of the names.

    `taken` are the dims that `shard` cuts.
    """
    for statement in reversed(statements):
        for name in (parameter.name, *parameter.aliases):
            if statement.subject == EXPERTS and parameter.shape and statement.names_list(name):
                return _cut_of_expert(statement, parameter, taken, sizes)
            owner = name.rpartition(".")[0]
            if parameter.shape and (statement.names(name) or statement.names(owner)):
                if statement.role == "zero":
                    return _cut_by_zero(statement, parameter, computed, sizes)
                dim = _dim(statement, model, name, len(parameter.shape))
                return {} if dim is None else dict.fromkeys(statement.axes, dim)
    return {}


def _cut_of_expert(
    statement: Sharding, parameter: Input, taken: Collection[int], sizes: Mapping[str, int]
) -> Mapping[str, int]:
    """Of a parameter that one expert of a list has: its first dim that all ranks divide and `shard` leaves whole."""
    ranks = math.prod(sizes[axis] for axis in statement.axes)
    dims = [dim for dim, extent in enumerate(parameter.shape) if extent % ranks == 0 and dim not in taken]
    return dict.fromkeys(statement.axes, dims[0]) if dims else {}


def _cut_by_zero(statement: Sharding, parameter: Input, computed: Cuts, sizes: Mapping[str, int]) -> Mapping[str, int]:
    """The longest dim that all ranks divide, rather one that nothing else cuts; else dim 0.

    Ranks of one node come first, and alone where those of all nodes do not divide a dim.
    """
    held = {axis for axes in computed.values() for axis in axes}
    shape = parameter.shape
    if 4 * math.prod(shape) < statement.least_bytes:
        return {}
    free = [axis for axis in statement.axes if axis not in held]
    of_node = [axis for axis in statement.within if axis in free]
    left = of_node + [axis for axis in free if axis not in of_node]
    if of_node and not any(
        shape[d] % math.prod(sizes[axis] for axis in (*left, *computed.get(d, ()))) == 0 for d in range(len(shape))
    ):
        left = of_node
    ranks = {d: math.prod(sizes[axis] for axis in (*left, *computed.get(d, ()))) for d in range(len(shape))}
    dividing = [d for d in ranks if not shape[d] % ranks[d]]
    candidates = [d for d in dividing if not computed.get(d)] or dividing or [0]
    longest = max(shape[d] for d in candidates)
    return dict.fromkeys(left, next(d for d in candidates if shape[d] == longest))


def cuts_of_buffer(plan: PlanText, buffer: Input) -> Cuts:
    """Of each axis, that of the last statement about it that names the buffer."""
    sizes = dict(plan.mesh)
    named = [each for each in plan.shardings(BUFFERS) if each.names(buffer.name)]
    cuts: dict[int, tuple[str, ...]] = {}
    for index, statement in enumerate(named):
        later = {axis for other in named[index + 1 :] for axis in other.axes}
        axes = tuple(axis for axis in statement.axes if sizes[axis] > 1 and axis not in later)
        if axes:
            dim = statement.number % len(buffer.shape)
            cuts[dim] = (*cuts.get(dim, ()), *axes)
    return cuts


def _dim(statement: Sharding, model: nn.Module, name: str, rank: int) -> int | None:
    """The dim that a statement shards of a parameter; none of the bias of a layer sharded by its rows."""
    match statement.role:
        case "dim":
            return statement.number % rank
        case "rows":
            return None if rank == 1 else 1 - _outputs(model, name)
        case _:
            return 0 if rank == 1 else _outputs(model, name)


def _outputs(model: nn.Module, name: str) -> int:
    """The dim of a weight that has a layer's outputs; of an embedding that of its words."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return int(any(f"{kind.__module__}.{kind.__qualname__}" == _TRANSPOSED for kind in type(owner).__mro__))
