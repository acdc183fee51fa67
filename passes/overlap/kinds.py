"""The kinds of communication that a plan's `overlap` names: which of them a pass is to move."""

from __future__ import annotations

from ...ir.bindings import Operation
from ...ir.collectives import ALL_TO_ALL, ALL_TO_ALL_ROWS, COLLECTIVES, RECEIVE, collective, synchronous

NONE = "none"
"""In place of kinds: nothing is moved."""


def kind_of(op: Operation) -> str:
    """The kind of a collective or a receive, in either form, buckets included; empty for another operation."""
    name = synchronous(op.operation.name)
    if name == RECEIVE:
        return "send"
    known = collective(name)
    if known is None:
        return ""
    name = known.coalesces or known.name
    return COLLECTIVES[ALL_TO_ALL if name == ALL_TO_ALL_ROWS else name].kind


def kinds_in(text: str) -> frozenset[str]:
    """The kinds that an option lists, separated by commas."""
    return frozenset(word.strip() for word in text.split(",")) - {"", NONE}
