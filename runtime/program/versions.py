"""The version of the program format, and the refusal of programs of another one.

A version reads its own format alone. A program is cheap to compile again, and what an older one does not state cannot
be checked; so the refusal names the command that compiles it again, taken from its manifest.

1. The first.
2. Messages name what they carry (`ops.MESSAGE_NAMES`).
3. Functions state the type of each slot; the keys are the words of the glossary.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from ...diagnostics.printable import printable
from ..errors import ProgramError

FORMAT = 3
"""The program format that this version reads and writes."""
_MODES = ("train", "infer")
_SIZES = ("batch", "seq")
_LONGEST = 1000
"""Characters of a command that is shown: a manifest may come from anyone."""


def refuse_other_format(manifest: Mapping[str, object], folder: Path) -> None:
    """Raise ProgramError E0301 for a manifest without a format number, E0304 for another number than `FORMAT`."""
    version = manifest.get("format")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ProgramError("E0301", f"'{folder}' is not a program folder: its 'manifest.json' has no format number")
    if version > FORMAT:
        raise ProgramError(
            "E0304",
            f"the program in '{folder}' has format {version}, but this version reads format {FORMAT}",
            help="install a newer stretto, or compile the program again with this one",
        )
    if version < FORMAT:
        command = compile_command(manifest, folder)
        raise ProgramError(
            "E0304",
            f"the program in '{folder}' has format {version}, but this version reads format {FORMAT}",
            help=f"compile it again: {command}" if command else "compile the model again with this version",
        )


def compile_command(manifest: Mapping[str, object], folder: Path) -> str:
    """The command that compiles a program again; empty where its manifest does not say what it was compiled from."""
    source = manifest.get("source")
    if not isinstance(source, Mapping) or not isinstance(source.get("path"), str):
        return ""
    path, name = str(source["path"]), source.get("name")
    target = f"hf:{path}" if source.get("kind") == "hf" else f"{path}:{name}"
    plan = source.get("plan")
    words = ["stretto", "compile", target, "--plan", plan if isinstance(plan, str) else "FILE", "-o", str(folder)]
    if manifest.get("mode") in _MODES:
        words += ["--mode", str(manifest["mode"])]
    request = source.get("request")
    if isinstance(request, Mapping):
        words += ["--dtype", str(request["dtype"])] if isinstance(request.get("dtype"), str) else []
        sizes = ((size, request.get(size)) for size in _SIZES)
        words += [word for size, value in sizes if isinstance(value, int) for word in (f"--{size}", str(value))]
        words += ["--target", "cuda"] if request.get("target") == "cuda" else []
        states = request.get("states")
        words += (
            [word for glob in states if isinstance(glob, str) for word in ("--states", glob)]
            if isinstance(states, list | tuple)
            else []
        )
    command = printable(" ".join(map(shlex.quote, words)))
    return command if len(command) <= _LONGEST else ""
