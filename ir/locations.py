"""The origin of an operation as an MLIR location: module path, the user's file and line, forward or backward.

Text: `loc(fused<{backward = true}>["model.layers.3.mlp", "model.py":12:0])`. Operations that an idiom was written out
to name it beside `backward`, as in `idiom = "attention"`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from .bindings import Location, Operation, mlir
from .dialects.context import context

SPLIT_LOSS = "split_loss"
"""In place of an idiom: the operations that make scores in chunks, which the backward computes again."""
CHUNK = "chunk"
"""In place of an idiom: the other operations of a chunk. What moves operations leaves them with their chunk."""
_IDIOM = re.compile(r'idiom = "(?P<name>[a-z_]+)"')


@dataclass(frozen=True)
class Origin:
    """The position in the user's model that an operation belongs to."""

    module_path: str = ""
    file: str = ""
    line: int = 0
    backward: bool = False

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else "(unknown place)"
        return f"{self.module_path or '(root)'} at {place}"


@lru_cache(maxsize=65536)
def to_location(origin: Origin, idiom: str = "") -> Location:
    """The MLIR location of an origin, and of the idiom that was written out."""
    ctx = context()
    parts = [mlir.Location.name(origin.module_path, context=ctx)]
    if origin.file:
        parts.append(mlir.Location.file(origin.file, origin.line, 0, context=ctx))
    items = [f"backward = {'true' if origin.backward else 'false'}", *([f'idiom = "{idiom}"'] if idiom else [])]
    metadata = mlir.Attribute.parse(f"{{{', '.join(items)}}}", ctx)
    return mlir.Location.fused(parts, metadata, context=ctx)


def from_location(location: Location) -> Origin:
    """The origin in an MLIR location; missing fields are empty."""
    path, file, line, backward = "", "", 0, False
    parts = location.locations if isinstance(location, mlir.FusedLoc) else [location]
    if isinstance(location, mlir.FusedLoc) and location.metadata is not None:
        backward = "backward = true" in str(location.metadata)
    for part in parts:
        if isinstance(part, mlir.NameLoc):
            path = part.name_str
        elif isinstance(part, mlir.FileLineColLoc):
            file, line = str(part.filename).strip('"'), part.start_line
    return Origin(path, file, line, backward)


def idiom_of(location: Location) -> str:
    """The idiom that an operation was written out from, such as "attention"; empty for another operation."""
    if not isinstance(location, mlir.FusedLoc) or location.metadata is None:
        return ""
    found = _IDIOM.search(str(location.metadata))
    return found["name"] if found else ""


def of_idiom(op: Operation) -> Location:
    """The location for what an operation is written out to, which names the idiom if it is one."""
    dialect, _, name = op.operation.name.partition(".")
    if dialect != "nn" or idiom_of(op.location):
        return op.location
    return to_location(from_location(op.location), name.removesuffix("_backward"))
