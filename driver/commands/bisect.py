"""`stretto bisect`."""

from __future__ import annotations

import argparse

from .arguments import MEMORY_CAP, add_json, add_source, add_terms, source_of
from .outcome import Outcome, require_compiler

HELP = "name the first pass, then the first operation, that breaks values or order"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "Exit code 0 when every pass keeps values and order, 1 when one breaks them or nothing could be compared."
    )
    add_source(parser)
    add_terms(parser, MEMORY_CAP)
    add_json(parser)


def run(given: argparse.Namespace) -> Outcome:
    """See `Command`."""
    require_compiler()
    from ..check.pass_check import terms_of
    from ..debug.bisect_file import bisect_source, bisection_json, show_bisection

    source = source_of(given)
    found = bisect_source(source, terms_of(given.seed, given.memory_cap, given.ranges))
    code = 0 if found.broken is None and not found.unchecked else 1
    return Outcome(code, lambda: show_bisection(found, source), lambda: bisection_json(found))
