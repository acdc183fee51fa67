"""`stretto bisect`: name the pass that breaks a module, and the operation."""

from __future__ import annotations

import argparse

from .arguments import MEMORY_CAP, add_allow_unjudged, add_check_options, add_json, add_source, source_of
from .outcome import Outcome, exit_code, require_compiler

HELP = "name the first pass, then the first operation, that breaks values or order"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "Exit code 0 when every pass keeps values and order, 1 when one breaks them, 3 when nothing could be compared "
        "(not judged)."
    )
    add_source(parser)
    add_check_options(parser, MEMORY_CAP)
    add_allow_unjudged(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    require_compiler()
    from ..check.pass_check import check_options
    from ..debug.bisect_file import bisect_source, bisection_json, show_bisection

    source = source_of(arguments)
    bisection = bisect_source(source, check_options(arguments.seed, arguments.memory_cap, arguments.ranges))
    code = exit_code(
        passed=bisection.broken is None and not bisection.unchecked,
        unjudged=bisection.broken is None,
        allow_unjudged=arguments.allow_unjudged,
    )
    return Outcome(code, lambda: show_bisection(bisection, source), lambda: bisection_json(bisection))
