"""`stretto reduce FILE -p PIPELINE`: reduce the text of a module to a small reproducer, and print it."""

from __future__ import annotations

from collections.abc import Mapping

from ...ir.source_text import read_module
from ...passes.manager import single
from ...passes.pipeline_text import print_pipeline
from ...runtime.program.arguments import Json
from ..check.pass_check import CheckOptions
from ..ir_files.module_source import Source, reproducer
from ..text.console import note, progress, say
from ..text.text_files import write_text
from .bisect_file import BROKEN
from .reduce import Reduced, reduce_module


def reduce_source(source: Source, options: CheckOptions, seconds: float, output: str | None) -> Reduced:
    """Reduce a module's text; writes the output file, whole or not at all. Errors: those of `reduce_module`, E0508."""
    module = read_module(source.text, source.name)
    with progress(1) as bar:
        bar.show("the pass that fails")
        reduced = reduce_module(
            module, list(single(source.steps())), options, seconds, lambda size: bar.show(f"{size} operations")
        )
    if output is not None:
        write_text(output, reproducer_text(reduced))
    return reduced


def reproducer_text(reduced: Reduced) -> str:
    """The text of the reproducer, which `opt`, `bisect` and `reduce` read."""
    kind = f": {reduced.code}" if reduced.code else ""
    return reproducer(reduced.text, [reduced.step], f'"{reduced.pass_name}" {BROKEN[reduced.breakage]}{kind}')


def reduced_json(reduced: Reduced, output: str | None) -> Mapping[str, Json]:
    """The result as JSON, with the module's text unless it was written to a file."""
    return {
        "pass": reduced.pass_name, "pipeline": print_pipeline([reduced.step]), "breakage": str(reduced.breakage),
        "code": reduced.code, "operations_before": reduced.before, "operations": reduced.after, "tries": reduced.tries,
        "seconds": reduced.seconds, "done": reduced.is_done, "output": output,
        "module": None if output else reproducer_text(reduced),
    }  # fmt: skip


def show_reduced(reduced: Reduced, output: str | None) -> None:
    """Print the module unless it was written to a file; the summary goes to stderr."""
    if output is None:
        say(reproducer_text(reduced).rstrip("\n"))
    kind = f" ({reduced.code})" if reduced.code else ""
    note(f'"{reduced.pass_name}" {BROKEN[reduced.breakage]}{kind}')
    end = "nothing smaller was found" if reduced.is_done else "the time limit was reached; --seconds raises it"
    note(
        f"reduced from {reduced.before} to {reduced.after} operations in {reduced.seconds:.1f} s "
        f"and {reduced.tries} tries: {end}"
    )
    if output is not None:
        note(f"to run it again: stretto bisect {output}")
