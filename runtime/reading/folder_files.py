"""The files of a program folder: each is read once, within limits, and what is hashed is what is decoded.

A folder may come from anyone. So a file is a regular one and not a device that never ends, its size and its number of
JSON values are bounded before memory is taken for them, and a file that is exchanged after its hash was checked is not
read again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..errors import ProgramError

MOST_BYTES = 1 << 27
"""The largest JSON or text file. Programs of pipelines with thousands of tasks on a stage have some 10 MB."""
MOST_VALUES = 1 << 23
"""The most values in a JSON file: each takes about 64 bytes of memory."""
MOST_LEVELS = 64
"""Accepted nesting of lists and objects in a file; compiled programs have about ten levels."""
_CHUNK_BYTES = 1 << 22
_COPY_AGAIN = "copy or compile the program again"


def read_file(folder: Path, name: str, *, hashed: str | None = None) -> bytes:
    """A file's content, whose SHA-256 is `hashed` where that is given. Raises ProgramError E0302, E0303."""
    path = folder / name
    if not path.is_file():
        raise ProgramError("E0302", f"'{folder}' is truncated: '{name}' is missing", help=_COPY_AGAIN)
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    if len(data) > MOST_BYTES:
        raise ProgramError("E0302", f"'{path}' is larger than {MOST_BYTES >> 20} MiB, more than a program has")
    if hashed is not None and hashlib.sha256(data).hexdigest() != hashed:
        raise altered(folder, name)
    return data


def text_of(data: bytes, path: Path) -> str:
    """The text of a file. Raises ProgramError E0302."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProgramError("E0302", f"'{path}' is not UTF-8 text (byte {error.start})", help=_COPY_AGAIN) from None


def json_of(data: bytes, path: Path) -> object:
    """The decoded content of a JSON file. Raises ProgramError E0302, also for NaN and for too much of it."""
    values = sum(data.count(sign) for sign in (b",", b"[", b"{"))
    if values > MOST_VALUES:
        raise ProgramError("E0302", f"'{path}' has more than {MOST_VALUES} values, more than a program has")
    try:
        value: object = json.loads(text_of(data, path), parse_constant=_refuse_constant)
        if _depth(value) > MOST_LEVELS:
            raise RecursionError
    except RecursionError:
        reason = f"it is nested more than {MOST_LEVELS} levels deep"
    except ValueError as error:
        reason = str(error)
    else:
        return value
    raise ProgramError("E0302", f"'{path}' is truncated or not JSON: {reason}", help=_COPY_AGAIN)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a regular file of any size. Raises ProgramError E0302."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise unreadable(path, error) from None
    return digest.hexdigest()


def altered(folder: Path, name: str) -> ProgramError:
    """The error for a file whose hash does not match."""
    return ProgramError(
        "E0303",
        f"'{folder / name}' was altered or truncated after the program was compiled: its hash does not match",
        help=_COPY_AGAIN,
    )


def unreadable(path: Path, error: OSError) -> ProgramError:
    """The error for a file that the system does not read."""
    return ProgramError("E0302", f"'{path}' cannot be read: {error.strerror}")


def _depth(value: object) -> int:
    """How deep lists and objects are nested in `value`."""
    depth, level = 0, [value]
    while containers := [child for child in level if isinstance(child, (dict, list))]:
        depth += 1
        if depth > MOST_LEVELS:
            break
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")
