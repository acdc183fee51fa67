"""Text that is safe on a terminal: control characters, which can move its cursor or hide text, are shown as escapes.

Names and paths come from models, plans and program folders, and so from anyone. All that Stretto prints goes through
`printable`: errors in `error.py`, results and notes in the console of the commands.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, delete, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what reorders text
    "\u2028\u2029\ufff9-\ufffb\ud800-\udfff]"  # other line breaks, annotations, half characters
)


def printable(text: str) -> str:
    r"""`text` with an escape in place of each control character but tab and newline.

    >>> printable("layers\x1b[2J.weight\r")
    'layers\\x1b[2J.weight\\r'
    """
    return _CONTROL.sub(_escape, text) if not text.isprintable() else text


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
