"""The main module of a launched process: `python -m stretto.runtime.processes.rank_process ENTRY FOLDER`.

ENTRY is "module:function" or "path/to/file.py:function". The function takes the JSON in FOLDER/arguments.json and
returns JSON, which goes to FOLDER/result-RANK.json. An error goes to FOLDER/error-RANK.json, printed text to
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
    """Run the entry as the rank of this process; the process exits with 1 after an error."""
    place = Path(folder)
    rank = os.environ["RANK"]
    _redirect_output(place / f"printed-{rank}.txt")
    threading.Thread(target=_exit_with_launcher, args=(os.getppid(),), name="stretto-launcher", daemon=True).start()
    try:
        arguments: Json = json.loads((place / "arguments.json").read_text())
        result = json.dumps(find_entry(entry)(arguments))
    except Exception as error:  # reported to the launcher; the process ends
        _write(place / f"error-{rank}.json", json.dumps(_error_report(error)))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # an orderly exit would block on connections to dead processes
    _write(place / f"result-{rank}.json", result)
    _leave()


def find_entry(entry: str) -> Entry:
    """The function that "module:function" or "path/to/file.py:function" names. Raises RunError E0358."""
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
        target: Entry = getattr(module, function)
    except (ImportError, AttributeError, ValueError, FileNotFoundError) as error:
        raise RunError("E0358", f"'{entry}' is not a function that a process can import: {error}") from error
    return target


def _error_report(error: Exception) -> dict[str, Json]:
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
    """Write a file atomically."""
    draft = path.with_suffix(".part")
    draft.write_text(text)
    draft.replace(path)


def _exit_with_launcher(launcher: int) -> None:
    """Exit at most a second after the launcher, because nothing else would end this process."""
    while os.getppid() == launcher:
        time.sleep(1.0)
    os._exit(1)


def _redirect_output(path: Path) -> None:
    """Redirect standard output and error to a file, for C++ libraries too."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(file, standard)
    os.close(file)


def _leave() -> None:
    from .world import leave  # imports torch.distributed, which an entry need not use

    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
