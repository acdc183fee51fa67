"""Methods of attention whose tokens are cut: the attribute `over = [["cp", "gather"]]` of an `nn.attention`.

It names the axes that cut the tokens and how the rank's queries meet the keys of all tokens (`dsl/attention.py`). It
changes no values: propagation chooses among the op's sharding strategies by it.

Another attribute, `band = {lowest = 0}`, says what is known of its mask: query i sees no key j but those with
lowest <= i - j <= highest. A ring leaves out what is hidden from all.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from .attributes import from_attribute, to_attribute
from .bindings import Operation

ATTENTION = ("nn.attention", "nn.attention_backward")
"""The operations that may have methods."""

ZIGZAG = "zigzag"
"""The method of a ring whose tokens are cut zigzag; other methods have their names of the plan language."""

BIDIRECTIONAL = "bidirectional"
ZIGZAG_BIDIRECTIONAL = "zigzag_bidirectional"
"""The method of a ring around which queries go, whose tokens are cut zigzag."""

STATE = "state"
"""The method of sums along tokens, which are not attention by softmax."""

SCANS = ("aten.cumsum.default", "aten.flip.default")
"""The operations that may have it: the sums, and flips around them."""

RINGS = ("ring", ZIGZAG, BIDIRECTIONAL, ZIGZAG_BIDIRECTIONAL)
"""The methods by which blocks of tokens go round."""
ZIGZAGS = (ZIGZAG, ZIGZAG_BIDIRECTIONAL)
"""Those with tokens cut zigzag."""

_OVER = "over"

BAND = "band"
"""The attribute of what is known of a mask."""


def methods_of(op: Operation) -> dict[str, str]:
    """The method of an operation on each axis that cuts its tokens; empty for all that have none."""
    return dict(from_attribute(op.attributes[_OVER])) if _OVER in op.attributes else {}


def set_methods(op: Operation, methods: Mapping[str, str]) -> None:
    """Name the methods; none leaves the operation as it is."""
    if methods:
        op.attributes[_OVER] = to_attribute([[axis, method] for axis, method in methods.items()])


def band_of(op: Operation) -> tuple[float, float]:
    """(lowest, highest) difference of the indices of a query and of a key that its mask may show it."""
    known = from_attribute(op.attributes[BAND]) if BAND in op.attributes else {}
    return known.get("lowest", -inf), known.get("highest", inf)


def set_band(op: Operation, band: tuple[float, float]) -> None:
    """Note the band of a mask; one without ends leaves the operation as it is."""
    known = {name: int(end) for name, end in zip(("lowest", "highest"), band, strict=True) if abs(end) != inf}
    if known:
        op.attributes[BAND] = to_attribute(known)
