"""A program in one piece of bytes, for a cache and for other ranks: its texts, and the SHA-256 of all in front.

It has no weights: who unpacks it has the model. What is unpacked is validated as a folder is (`folder.py`), within the
same limits. The hash finds damage; it is no signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..errors import ProgramError
from ..reading.folder_files import MOST_BYTES, json_of
from ..reading.json_fields import Fields, Malformed
from .arguments import Json
from .folder import JSON_FILES, SIZES, TEXT_FILES
from .program import Manifest, Program, program_of_files
from .versions import FORMAT

_DIGEST = hashlib.sha256().digest_size


def pack(program: Program, notes: Mapping[str, Json]) -> bytes:
    """A program without its weights, and notes of whoever keeps it."""
    content = {"manifest": program.manifest.to_json(), "files": program.texts(), "notes": dict(notes)}
    data = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return hashlib.sha256(data).digest() + data


def unpack(data: bytes, origin: Path) -> tuple[Program, dict[str, object]]:
    """The program and the notes of `pack`; `origin` is what errors name.

    Raises ProgramError: E0302 and E0303 for what is torn, E0304 and E0306 for what is no valid program, E0305 for an op
    outside the table.
    """
    digest, content = data[:_DIGEST], data[_DIGEST:]
    if len(data) > MOST_BYTES:
        raise ProgramError("E0302", f"'{origin}' is larger than {MOST_BYTES >> 20} MiB, more than a program has")
    if hashlib.sha256(content).digest() != digest:
        raise ProgramError("E0303", f"'{origin}' is torn or was altered: its hash does not match")
    try:
        fields = Fields(json_of(content, origin), origin.name)
        manifest = Manifest.from_json(fields.mapping("manifest"))
        if manifest.format != FORMAT:
            raise ProgramError("E0304", f"'{origin}' has format {manifest.format}, and this version writes {FORMAT}")
        return _program(manifest, fields, origin).validated, fields.mapping("notes")
    except Malformed as error:
        raise ProgramError("E0306", f"'{origin}' is malformed: {error}") from None


def _program(manifest: Manifest, fields: Fields, origin: Path) -> Program:
    texts = fields.mapping("files")
    if {*texts} - {SIZES} != {*JSON_FILES, *TEXT_FILES} or not all(isinstance(text, str) for text in texts.values()):
        raise Malformed(f"{origin.name}.files: expected the texts of a program")
    decoded = {
        name: str(text) if name in TEXT_FILES else json_of(str(text).encode(), origin / name)
        for name, text in texts.items()
    }
    return replace(program_of_files(manifest, decoded), initial={})
