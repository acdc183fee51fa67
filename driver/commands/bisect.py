"""`stretto bisect`."""

from __future__ import annotations

import argparse

from .arguments import MEMORY_CAP, add_json, add_pipeline, add_terms
from .outcome import Outcome, require_compiler

HELP = "name the first pass, then the first operation, that breaks values or order"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "Exit code 0 when every pass keeps values and order, 1 when one breaks them or nothing could be compared."
    )
    parser.add_argument(
        "path", metavar="FILE", help="a module, - for standard input, or a folder that compile --dump-ir wrote"
    )
    add_pipeline(parser, required=False, also="; default: what the file or the folder names")
    add_terms(parser, MEMORY_CAP)
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(given: argparse.Namespace) -> Outcome:
    """See `Command`."""
    require_compiler()
    from ..bisect_file import bisect_source, bisection_json, show_bisection
    from ..judge import terms_of
    from ..module_source import read_source

    source = read_source(given.path, given.pipeline)
    if source.pipeline is None:
        given.usage_error("name the passes with -p PIPELINE")
    found = bisect_source(source, terms_of(given.seed, given.memory_cap, given.ranges))
    code = 0 if found.broken is None and not found.unchecked else 1
    return Outcome(code, lambda: show_bisection(found, source), lambda: bisection_json(found))
