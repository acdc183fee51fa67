"""What `fold-layers` says: the layers that became one function, and those that could not, with what differs."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.locations import Origin
from ..base import Remark, RemarkKind
from .instances import Instance

_PASS = "fold-layers"
_COMPARED = ("constants", "operands", "results")
"""What a line of a signature has behind the operation's name."""


def folded(groups: Sequence[Sequence[Instance]]) -> list[Remark]:
    """One remark for each group of equal layers."""
    found = []
    for instance, *others in groups:
        layer = instance.layer
        message = (
            f"{1 + len(others)} equal {layer.direction} layers of "
            f'"{layer.container}" became one function of {len(instance.nodes)} operations'
        )
        place = Origin(layer.container, *_first_place(instance), layer.backward)
        found.append(Remark(_PASS, RemarkKind.APPLIED, message, place))
    return found


def refusals(refused: Sequence[Instance]) -> list[Remark]:
    """One remark for each instance that cannot run in one piece."""
    return [
        Remark(
            _PASS,
            RemarkKind.MISSED,
            f'layer "{each.layer.path}" needs a value that depends on what it gives',
            Origin(each.layer.path, backward=each.layer.backward),
        )
        for each in refused
    ]


def unlike(alone: Sequence[Instance], groups: Sequence[Sequence[Instance]]) -> list[Remark]:
    """One remark for the layers of a container and direction that are like no other: how many, and how one differs."""
    by_container: dict[tuple[str, bool], list[Instance]] = {}
    for instance in alone:
        by_container.setdefault((instance.layer.container, instance.layer.backward), []).append(instance)
    found = []
    for (container, backward), members in by_container.items():
        others = [g[0] for g in groups if (g[0].layer.container, g[0].layer.backward) == (container, backward)]
        others += members
        if len(others) > 1:
            other = next(each for each in others if each is not members[0])
            difference, origin = _difference(members[0], other)
            numbers = ", ".join(str(each.layer.index) for each in members)
            layers = f'{members[0].layer.direction} layers {numbers} of "{container}"'
            found.append(Remark(_PASS, RemarkKind.MISSED, f"{layers} are like no other: {difference}", origin))
    return found


def _first_place(instance: Instance) -> tuple[str, int]:
    """File and line of the first operation that has them."""
    return next(((n.origin.file, n.origin.line) for n in instance.nodes if n.origin.file), ("", 0))


def _difference(one: Instance, other: Instance) -> tuple[str, Origin]:
    """The first difference between two instances, and where it is."""
    ours, theirs = one.signature(), other.signature()
    for at, (our, their) in enumerate(zip(ours[:-1], theirs[:-1], strict=False)):
        if our != their:
            node = one.nodes[at]
            if our[0] != their[0]:
                return f'"{our[0]}" stands where "{other.layer.path}" has "{their[0]}"', node.origin
            what = next(w for w, a, b in zip(_COMPARED, our[1:], their[1:], strict=True) if a != b)
            return f'"{our[0]}" has other {what} than in "{other.layer.path}"', node.origin
    if len(ours) != len(theirs):
        count = f"{len(ours) - 1} operations, where {other.layer.path} has {len(theirs) - 1}"
        return f"{one.layer.path} has {count}", one.nodes[-1].origin
    our, their = next((a, b) for a, b in zip(ours[-1], theirs[-1], strict=True) if a != b)
    return f'it takes {our} where "{other.layer.path}" takes {their}', one.nodes[0].origin
