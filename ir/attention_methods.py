"""Methods of attention whose tokens are cut: the attribute `over = [["cp", "gather"]]` of an `nn.attention`.

It names the axes that cut the tokens and how the rank's queries meet the keys of all tokens (`dsl/attention.py`). It
changes no values: propagation chooses among the op's sharding strategies by it.
"""

from __future__ import annotations

from collections.abc import Mapping

from .attributes import from_attribute, to_attribute
from .bindings import Operation

ATTENTION = ("nn.attention", "nn.attention_backward")
"""The operations that may have methods."""

ZIGZAG = "zigzag"
"""The method of a ring whose tokens are cut zigzag; other methods have their names of the plan language."""

_OVER = "over"


def methods_of(op: Operation) -> dict[str, str]:
    """The method of an operation on each axis that cuts its tokens; empty for all that have none."""
    return dict(from_attribute(op.attributes[_OVER])) if _OVER in op.attributes else {}


def set_methods(op: Operation, methods: Mapping[str, str]) -> None:
    """Name the methods; none leaves the operation as it is."""
    if methods:
        op.attributes[_OVER] = to_attribute([[axis, method] for axis, method in methods.items()])
