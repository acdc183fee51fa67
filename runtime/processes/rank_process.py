"""What a launched process runs: `python -m stretto.runtime.processes.rank_process ENTRY FOLDER`.

ENTRY is "module:function" or "path/to/file.py:function"; the function takes the JSON in FOLDER/arguments.json and
returns JSON, which goes to FOLDER/result-RANK.json. An error goes to FOLDER/error-RANK.json, and what is printed to
FOLDER/printed-RANK.txt.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ...diagnostics import StrettoError
from ..errors import PeerFailed, RunError
from ..program.arguments import Json

Entry = Callable[[Json], Json]


def main(entry: str, folder: str) -> None:
    """Run the entry as the rank of this process, and end the process (1 after an error)."""
    place = Path(folder)
    rank = os.environ["RANK"]
    _print_to(place / f"printed-{rank}.txt")
    threading.Thread(target=_end_with, args=(os.getppid(),), name="stretto-launcher", daemon=True).start()
    try:
        arguments: Json = json.loads((place / "arguments.json").read_text())
        result = json.dumps(find_entry(entry)(arguments))
    except Exception as error:  # the process ends with it: it is written down, not swallowed
        _write(place / f"error-{rank}.json", json.dumps(_describe(error)))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # connections to processes that are gone would hold up an orderly end
    _write(place / f"result-{rank}.json", result)
    _leave()


def find_entry(entry: str) -> Entry:
    """The function that "module:function" or "path/to/file.py:function" names; raises RunError E0358."""
    source, _, function = entry.rpartition(":")
    try:
        if source.endswith(".py"):
            path = Path(source).resolve()
            sys.path.insert(0, str(path.parent))
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None:
                raise ImportError(f"'{path}' is not a Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(path.stem, module)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
        found: Entry = getattr(module, function)
    except (ImportError, AttributeError, ValueError, FileNotFoundError) as error:
        raise RunError("E0358", f"'{entry}' is no function that a process can import: {error}") from error
    return found


def _describe(error: Exception) -> dict[str, Json]:
    if isinstance(error, StrettoError):
        kind = "peer" if isinstance(error, PeerFailed) else "stretto"
        notes: Json = [[message, str(place) if place else ""] for message, place in error.notes]
        place: Json = [error.span.file, error.span.line] if error.span else None
        return {
            "kind": kind, "code": error.code, "message": error.message, "notes": notes, "help": error.help,
            "place": place,
        }  # fmt: skip
    text = "".join(traceback.format_exception(error))
    return {"kind": "other", "code": "", "message": f"{type(error).__name__}: {error}", "traceback": text}


def _write(path: Path, text: str) -> None:
    """The whole file or none."""
    draft = path.with_suffix(".part")
    draft.write_text(text)
    draft.replace(path)


def _end_with(launcher: int) -> None:
    """Outlive the launcher by no more than a second: nobody would end this process."""
    while os.getppid() == launcher:
        time.sleep(1.0)
    os._exit(1)


def _print_to(path: Path) -> None:
    """Standard output and error of this process, of its libraries too."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(file, standard)
    os.close(file)


def _leave() -> None:
    from .world import leave  # torch.distributed is needed only where an entry has used it

    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
