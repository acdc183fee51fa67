"""The programs of the compile cache on disk: one file an entry, written whole or not at all, oldest removed.

Several processes may read, write and remove at once: an entry is written to a temporary file and renamed, and a reader
holds the file that it opened. The cache never fails a compile: what cannot be read or written is reported in one line,
and the program is compiled as without a cache.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...diagnostics import StrettoError
from ...runtime.program.arguments import Json
from ...runtime.program.packed import pack, unpack
from ...runtime.program.program import Program
from ...runtime.reading.folder_files import MOST_BYTES
from .location import cache_folder

LARGEST_BYTES = 1 << 30
"""Past this size of all entries together the ones that were used longest ago are removed."""
_ENTRIES = "programs"
_SUFFIX = ".program"
_PARTIAL = ".partial"
_ABANDONED_S = 3600.0
"""Age after which the temporary file of a process that died is removed."""
_ENTRY_NAME = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}|\w+{re.escape(_PARTIAL)}")
KEY = "key"
"""The note of an entry that says its key: a file that was renamed is no entry of its new name."""


@dataclass(frozen=True)
class CacheEntry:
    """A program as kept in the cache, with what was noted beside it."""

    program: Program
    notes: Mapping[str, object]


@dataclass(frozen=True)
class CacheSize:
    """How much there is in a cache."""

    folder: Path
    entries: int
    size_bytes: int


class CacheFault(Exception):
    """The cache could not be used; the message is the one line that says so."""


class ProgramStore:
    """The entries in one folder."""

    def __init__(self, folder: Path, largest_bytes: int = LARGEST_BYTES) -> None:
        self.folder = folder
        self._entries = folder / _ENTRIES
        self._largest_bytes = largest_bytes

    @staticmethod
    def of_user() -> ProgramStore | None:
        """The store in the folder of `cache_folder`; None where the cache is off."""
        folder = cache_folder()
        return None if folder is None else ProgramStore(folder)

    def find(self, key: str) -> CacheEntry | None:
        """The entry of a key; None where there is none. Raises CacheFault for one that cannot be used."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                data = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheFault(f"the compile cache cannot be read: '{path}': {error.strerror or error}") from None
        try:
            program, notes = unpack(data, path)
        except StrettoError as error:
            raise self._unusable(path, error.message) from None
        if notes.get(KEY) != key:
            raise self._unusable(path, "it is the program of another key")
        with suppress(OSError):
            os.utime(path)  # the entries that were used last are kept longest
        return CacheEntry(program, notes)

    def keep(self, key: str, program: Program, notes: Mapping[str, Json]) -> None:
        """Write an entry, and remove the oldest ones past the limit. Raises CacheFault where that fails."""
        data = pack(program, {**notes, KEY: key})
        if len(data) > min(MOST_BYTES, self._largest_bytes):
            raise CacheFault(f"the program is not cached: it has {len(data)} bytes, more than the compile cache keeps")
        try:
            self._entries.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(self._path(key), data)
            self._remove_oldest()
        except OSError as error:
            why = error.strerror or error
            raise CacheFault(f"the compile cache cannot be written: '{self._entries}': {why}") from None

    def size(self) -> CacheSize:
        """How many entries there are, and their size. Raises OSError."""
        sizes = [each.stat().st_size for each in self._files() if each.suffix == _SUFFIX]
        return CacheSize(self.folder, len(sizes), sum(sizes))

    def clear(self) -> None:
        """Remove all entries, and no other file. Raises OSError."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._entries / f"{key}{_SUFFIX}"

    def _unusable(self, path: Path, why: str) -> CacheFault:
        with suppress(OSError):
            path.unlink()
        return CacheFault(f"an entry of the compile cache was unusable and is compiled again: {why}")

    def _write(self, path: Path, data: bytes) -> None:
        handle, name = tempfile.mkstemp(prefix="new_", suffix=_PARTIAL, dir=self._entries)
        try:
            with open(handle, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise

    def _files(self) -> Iterator[Path]:
        """The files of the cache: entries and temporary files."""
        with suppress(FileNotFoundError):
            yield from (path for path in self._entries.iterdir() if _ENTRY_NAME.fullmatch(path.name))

    def _remove_oldest(self) -> None:
        found: list[tuple[float, int, Path]] = []
        for path in self._files():
            with suppress(FileNotFoundError):  # another process removed it
                stat = path.stat()
                if path.suffix == _SUFFIX:
                    found.append((stat.st_mtime, stat.st_size, path))
                elif stat.st_mtime < time.time() - _ABANDONED_S:
                    path.unlink()
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._largest_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
