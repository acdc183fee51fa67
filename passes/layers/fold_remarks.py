"""The remarks of `fold-layers`: the layers that became one function, and those that did not, with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.locations import Origin
from ..base import Remark, RemarkKind
from .instances import Instance

_PASS = "fold-layers"
_COMPARED = ("constants", "operands", "results")
"""The fields of a signature's line after the operation's name."""


def folded(groups: Sequence[Sequence[Instance]]) -> list[Remark]:
    """One remark for each group of equal layers."""
    remarks = []
    for instance, *others in groups:
        layer = instance.layer
        message = (
            f"{1 + len(others)} equal {layer.direction} layers of "
            f'"{layer.container}" became one function of {len(instance.nodes)} operations'
        )
        place = Origin(layer.container, *_first_place(instance), layer.backward)
        remarks.append(Remark(_PASS, RemarkKind.APPLIED, message, place))
    return remarks


def refusals(refused: Sequence[Instance]) -> list[Remark]:
    """One remark for each instance that cannot run in one piece."""
    return [
        Remark(
            _PASS,
            RemarkKind.MISSED,
            f'layer "{instance.layer.path}" needs a value that depends on what it gives',
            Origin(instance.layer.path, backward=instance.layer.backward),
        )
        for instance in refused
    ]


def unlike(alone: Sequence[Instance], groups: Sequence[Sequence[Instance]]) -> list[Remark]:
    """One remark for the layers of a container and direction that equal no other, with how one of them differs."""
    by_container: dict[tuple[str, bool], list[Instance]] = {}
    for instance in alone:
        by_container.setdefault((instance.layer.container, instance.layer.backward), []).append(instance)
    remarks = []
    for (container, backward), members in by_container.items():
        others = [g[0] for g in groups if (g[0].layer.container, g[0].layer.backward) == (container, backward)]
        others += members
        if len(others) > 1:
            other = next(instance for instance in others if instance is not members[0])
            difference, origin = _difference(members[0], other)
            numbers = ", ".join(str(instance.layer.index) for instance in members)
            layers = f'{members[0].layer.direction} layers {numbers} of "{container}"'
            remarks.append(Remark(_PASS, RemarkKind.MISSED, f"{layers} are like no other: {difference}", origin))
    return remarks


def _first_place(instance: Instance) -> tuple[str, int]:
    """File and line of the first operation with a source location."""
    return next(((n.origin.file, n.origin.line) for n in instance.nodes if n.origin.file), ("", 0))


def _difference(one: Instance, other: Instance) -> tuple[str, Origin]:
    """The first difference between two instances, and its place."""
    one_lines, other_lines = one.signature(), other.signature()
    for index, (one_line, other_line) in enumerate(zip(one_lines[:-1], other_lines[:-1], strict=False)):
        if one_line != other_line:
            node = one.nodes[index]
            if one_line[0] != other_line[0]:
                return f'"{one_line[0]}" stands where "{other.layer.path}" has "{other_line[0]}"', node.origin
            aspect = next(w for w, a, b in zip(_COMPARED, one_line[1:], other_line[1:], strict=True) if a != b)
            return f'"{one_line[0]}" has other {aspect} than in "{other.layer.path}"', node.origin
    if len(one_lines) != len(other_lines):
        count = f"{len(one_lines) - 1} operations, where {other.layer.path} has {len(other_lines) - 1}"
        return f"{one.layer.path} has {count}", one.nodes[-1].origin
    one_line, other_line = next((a, b) for a, b in zip(one_lines[-1], other_lines[-1], strict=True) if a != b)
    return f'it takes {one_line} where "{other.layer.path}" takes {other_line}', one.nodes[0].origin
