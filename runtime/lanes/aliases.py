"""Which operands the results of an instruction may share memory with, by the op's schema."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from ..program.arguments import slots_in
from ..program.mesh import RankMesh
from ..program.ops import COLLECTIVES, OWN_OPS, torch_op
from ..program.records import Instruction

_UNSAID = ("aten._unsafe_view.default", "aten._reshape_alias.default", "aten.detach.default")
"""Ops that give a view although their schema does not say so."""


def aliased_slots(instruction: Instruction, mesh: RankMesh) -> tuple[int, ...]:
    """The slots whose memory a result may share: of views, of a rank's part, of collectives of one rank.

    An op that gives a view or a copy, such as a reshape, counts as a view.
    """
    if instruction.op in OWN_OPS:
        axes = instruction.kwargs.get("axes")
        alone = instruction.op in COLLECTIVES and isinstance(axes, list | tuple) and mesh.size([*map(str, axes)]) == 1
        return instruction.reads() if alone or instruction.op == "rank.shard" else ()
    slots: list[int] = []
    for position, name in _viewed(instruction.op):
        value = instruction.kwargs.get(name)
        if position < len(instruction.args):
            value = instruction.args[position]
        slots += slots_in(value)
    return tuple(slots)


@cache
def _viewed(op: str) -> Sequence[tuple[int, str]]:
    """The position and name of the arguments that a result may be a view of."""
    schema = torch_op(op).overload._schema
    if op in _UNSAID:
        return [(0, schema.arguments[0].name)]
    if not any(returned.alias_info for returned in schema.returns):
        return []
    return [(index, each.name) for index, each in enumerate(schema.arguments) if each.alias_info]
