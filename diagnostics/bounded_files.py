"""Files of others, read within a limit: a device or a pipe may never end, and a file may be larger than memory."""

from __future__ import annotations

import errno
import os
from typing import BinaryIO

MOST_TEXT_BYTES = 1 << 26
"""The largest text that is read: a plan, a schedule, a module, a config."""


def read_file(path: str | os.PathLike[str], most: int = MOST_TEXT_BYTES) -> bytes:
    """The content of a file. Raises OSError where it cannot be read, or has more than `most` bytes."""
    with open(path, "rb") as stream:
        return read_stream(stream, most)


def read_stream(stream: BinaryIO, most: int = MOST_TEXT_BYTES) -> bytes:
    """What is left of a stream. Raises OSError where that is more than `most` bytes."""
    data = stream.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most >> 20} MiB")
    return data
