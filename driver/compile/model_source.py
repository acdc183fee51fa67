"""Where a target's model came from, as a manifest says it, and the hash by which a change of its file is noticed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from ...runtime.program.arguments import Json

PLAN_TEXT = "plan_text"
"""The key of the plan's text in the manifest's record."""


def source_record(source: Mapping[str, Json], request: Mapping[str, Json]) -> dict[str, Json]:
    """The manifest's record of a target, from which the target can be loaded again; paths become absolute."""
    path = os.path.abspath(str(source["path"]))
    hashed = file_hash(source_file(source.get("kind"), path))
    return {**source, "path": path, "request": dict(request), "sha256": hashed}


def source_file(kind: Json, path: str) -> Path:
    """The file whose hash tells whether a target is unchanged."""
    return Path(path, "config.json") if kind == "hf" and os.path.isdir(path) else Path(path)


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
