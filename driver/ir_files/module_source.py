"""Where commands read a module from: a file, standard input, a folder of `--dump-ir`, or a reproducer.

A reproducer is a module whose first lines are comments; one of them names the passes: `// pipeline: cse,fold-layers`.
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
    """A module's text, its file's name for messages, and the passes to run on it."""

    text: str
    name: str
    pipeline: str | None
    """None where neither the caller nor the file names passes."""

    def steps(self) -> list[Step]:
        """The passes. Errors E0410 to E0416."""
        return parse_pipeline(self.pipeline or "")


def read_source(path: str, pipeline: str | None) -> Source:
    """Read a module; `pipeline`, if given, overrides the pipeline of the file or folder.

    Errors: E0507 for a file that cannot be read, E0509 for a folder without a module.
    """
    if path != STDIN and Path(path).is_dir():
        return _folder(Path(path), pipeline)
    text, name = read_text(path)
    comments = _COMMENTS.match(text)
    match = _PIPELINE.search(comments.group() if comments else "")
    return Source(text, name, pipeline if pipeline is not None or match is None else match["text"])


def reproducer(text: str, steps: Sequence[Step], why: str) -> str:
    """The text of a reproducer; `why` is a sentence."""
    lines = [f"// {line}".rstrip() for line in why.splitlines()]
    return "\n".join([*lines, f"// pipeline: {print_pipeline(steps)}", text])


def _folder(folder: Path, pipeline: str | None) -> Source:
    module = folder / CAPTURED
    if not module.is_file():
        raise StrettoError(
            "E0509",
            f"the folder '{folder}' has no file \"{CAPTURED}\"",
            expected='the file of a module, or a folder that "stretto compile --dump-ir" wrote',
            help="compile with --dump-ir DIR, and pass that DIR",
        )
    if pipeline is None and (folder / PIPELINE).is_file():
        pipeline, _ = read_text(str(folder / PIPELINE))
    text, name = read_text(str(module))
    return Source(text, name, pipeline)
