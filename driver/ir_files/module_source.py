"""What commands are given a module by: a file, standard input, a folder that `--dump-ir` wrote, or a reproducer.

A reproducer is a module whose first lines are comments, one of which names the passes: `// pipeline: cse,fold-layers`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...diagnostics import StrettoError
from ...passes.manager import Step
from ...passes.pipeline_text import parse_pipeline, print_pipeline
from ..text.text_files import STDIN, read_text
from .dump_ir import CAPTURED, PIPELINE

_COMMENTS = re.compile(r"(?:[ \t]*//[^\n]*\n|[ \t]*\n)*")
_PIPELINE = re.compile(r"^[ \t]*// pipeline: (?P<text>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A module's text, what to call its file in messages, and the passes to run on it."""

    text: str
    name: str
    pipeline: str | None
    """None where neither the caller nor the file names them."""

    def steps(self) -> list[Step]:
        """The passes. Errors E0410 to E0416."""
        return parse_pipeline(self.pipeline or "")


def read_source(path: str, pipeline: str | None) -> Source:
    """Read a module; `pipeline`, where it is given, goes before what the file or the folder says.

    Errors: E0507 for what cannot be read, E0509 for a folder without a module.
    """
    if path != STDIN and Path(path).is_dir():
        return _folder(Path(path), pipeline)
    text, name = read_text(path)
    comments = _COMMENTS.match(text)
    found = _PIPELINE.search(comments.group() if comments else "")
    return Source(text, name, pipeline if pipeline is not None or found is None else found["text"])


def reproducer(text: str, steps: Sequence[Step], why: str) -> str:
    """The text of a reproducer; `why` is a sentence."""
    lines = [f"// {line}".rstrip() for line in why.splitlines()]
    return "\n".join([*lines, f"// pipeline: {print_pipeline(steps)}", text])


def _folder(folder: Path, pipeline: str | None) -> Source:
    module = folder / CAPTURED
    if not module.is_file():
        raise StrettoError(
            "E0509",
            f"'{folder}' is a folder without a module to begin with",
            expected=f'a file, or a folder that "stretto compile --dump-ir" wrote, with "{CAPTURED}" in it',
            help="compile with --dump-ir DIR, and give that DIR",
        )
    if pipeline is None and (folder / PIPELINE).is_file():
        pipeline, _ = read_text(str(folder / PIPELINE))
    text, name = read_text(str(module))
    return Source(text, name, pipeline)
