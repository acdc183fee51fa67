"""The two levels of the IR. Apart from `module.py`, so that what only names a level needs neither torch nor MLIR."""

from __future__ import annotations

from enum import StrEnum


class Level(StrEnum):
    """What shapes mean: `aten` global tensors (perhaps with placements), `comm` what one rank holds."""

    ATEN = "aten"
    COMM = "comm"
