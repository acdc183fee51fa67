"""`stretto reduce FILE -p PIPELINE`: a reproducer that is as small as can be found, and how it is told."""

from __future__ import annotations

from collections.abc import Mapping

from ...ir.source_text import read_module
from ...passes.manager import single
from ...passes.pipeline_text import print_pipeline
from ...runtime.program.arguments import Json
from ..check.pass_check import Terms
from ..ir_files.module_source import Source, reproducer
from ..text.console import note, progress, say
from ..text.text_files import write_text
from .bisect_file import BROKEN
from .reduce import Reduced, reduce_module


def reduce_source(source: Source, terms: Terms, seconds: float, output: str | None) -> Reduced:
    """Reduce a module's text; writes the output file, whole or not at all. Errors: those of `reduce_module`, E0508."""
    module = read_module(source.text, source.name)
    with progress(1) as bar:
        bar.to("the pass that fails")
        found = reduce_module(
            module, list(single(source.steps())), terms, seconds, lambda size: bar.to(f"{size} operations")
        )
    if output is not None:
        write_text(output, reproducer_text(found))
    return found


def reproducer_text(found: Reduced) -> str:
    """The file that `opt`, `bisect` and `reduce` read back."""
    kind = f": {found.code}" if found.code else ""
    return reproducer(found.text, [found.step], f'"{found.pass_name}" {BROKEN[found.breakage]}{kind}')


def reduced_json(found: Reduced, output: str | None) -> Mapping[str, Json]:
    """What was found; the text where it was not written to a file."""
    return {
        "pass": found.pass_name, "pipeline": print_pipeline([found.step]), "breakage": str(found.breakage),
        "code": found.code, "operations_before": found.before, "operations": found.after, "tries": found.tries,
        "seconds": found.seconds, "done": found.is_done, "output": output,
        "module": None if output else reproducer_text(found),
    }  # fmt: skip


def show_reduced(found: Reduced, output: str | None) -> None:
    """Print the module, unless it was written to a file; what was reached goes to stderr."""
    if output is None:
        say(reproducer_text(found).rstrip("\n"))
    kind = f" ({found.code})" if found.code else ""
    note(f'"{found.pass_name}" {BROKEN[found.breakage]}{kind}')
    end = "nothing smaller was found" if found.is_done else "time was up; --seconds gives more"
    note(
        f"reduced from {found.before} to {found.after} operations in {found.seconds:.1f} s "
        f"and {found.tries} tries: {end}"
    )
    if output is not None:
        note(f"to run it again: stretto bisect {output}")
