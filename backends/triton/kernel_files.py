"""Kernels on disk: their sources, which Triton compiles from a file, and the chosen block sizes.

A file is never trusted. A kernel's source is generated anew, which takes milliseconds, and replaces a file that
differs: one that is cut short, altered, or by another version. A choice of block sizes that is no such choice counts
as none.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from .blocks import Blocks, block_space
from .generate import Kernel
from .region import VERSION


@dataclass(frozen=True)
class KernelFiles:
    """A folder of kernels, which several processes may share."""

    folder: Path

    def source(self, kernel: Kernel) -> Path:
        """The file with the kernel's source, written where it is missing or differs."""
        file = self.folder / f"{kernel.name}.py"
        try:
            is_there = file.read_text(encoding="utf-8") == kernel.source
        except (OSError, UnicodeDecodeError):
            is_there = False
        if not is_there:
            try:
                self._replace(file, kernel.source)
            except OSError:  # a full disk, or a folder that may not be written to
                file = _folder_of_this_process() / file.name
                file.write_text(kernel.source, encoding="utf-8")
        return file

    def blocks(self, kernel: Kernel, device: str) -> Blocks | None:
        """The block sizes chosen for a kernel on a device; None where none is known."""
        try:
            stated = json.loads(self._choice(kernel, device).read_text(encoding="utf-8"))
            if stated["version"] != VERSION:
                return None
            chosen = Blocks(**stated["blocks"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return chosen if chosen in block_space(kernel) else None

    def keep_blocks(self, kernel: Kernel, device: str, blocks: Blocks) -> None:
        """Keep the choice of block sizes for a kernel on a device; where it cannot be kept, it is measured again."""
        text = json.dumps({"version": VERSION, "blocks": asdict(blocks)})
        with suppress(OSError):
            self._replace(self._choice(kernel, device), text)

    def _choice(self, kernel: Kernel, device: str) -> Path:
        named = "".join(c if c.isalnum() else "-" for c in device)
        return self.folder / f"{kernel.name}.{named}.blocks.json"

    def _replace(self, file: Path, text: str) -> None:
        """Write a file as a whole or not at all, also where others write the same one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, file)


@cache
def _folder_of_this_process() -> Path:
    """For sources that cannot be kept; removed at exit."""
    folder = tempfile.mkdtemp(prefix="stretto-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
