"""Text files that commands read and write; writing is atomic, and errors give the system's reason."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from ...diagnostics import StrettoError
from ...diagnostics.bounded_files import read_file, read_stream

STDIN = "-"
"""The name that stands for standard input."""


def read_text(file: str) -> tuple[str, str]:
    """A file's text, and its name for messages; "-" is standard input. E0507 for a file that cannot be read."""
    name = "<stdin>" if file == STDIN else file
    try:
        data = read_stream(sys.stdin.buffer) if file == STDIN else read_file(file)
        return data.decode("utf-8"), name
    except OSError as error:
        from ...dsl.spelling import similar_path  # with it comes the plan language, which takes a while

        similar = "" if file == STDIN else similar_path(file)
        raise StrettoError("E0507", f"'{name}' cannot be read: {error.strerror}", help=similar) from None
    except UnicodeDecodeError as error:
        raise StrettoError("E0507", f"'{name}' is not UTF-8 text: byte {error.start} is invalid") from None


def write_text(file: str | Path, text: str) -> None:
    """Write a temporary file and rename it, so an existing file stays until the new one is complete. E0508 on failure.

    For a link its target is written. A pipe or device, such as /dev/null, is written in place.
    """
    path = Path(file)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        place = Path(os.path.realpath(path))
        partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StrettoError("E0508", f"'{file}' cannot be written: {error.strerror}") from None


def make_folder(folder: str | Path) -> Path:
    """The folder, created where it does not exist; E0508 on failure."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StrettoError("E0508", f"'{path}' cannot be made a folder: {error.strerror}") from None
    return path
