"""`stretto reduce`."""

from __future__ import annotations

import argparse

from .arguments import MEMORY_CAP, add_json, add_source, add_terms, output_file, positive, source_of
from .outcome import Outcome, require_compiler

HELP = "find the smallest module on which a pass still fails in the same way"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "The first pass that fails, or that changes values or order, is named with the smallest module found on which "
        "it still does; both stand in one file, which opt, bisect and reduce read. Exit code 0 when there is one."
    )
    add_source(parser)
    parser.add_argument("-o", "--output", metavar="OUT", help="write the module there; default, or -: standard output")
    parser.add_argument("--seconds", type=positive, default=60, metavar="S", help="stop then; default: 60")
    add_terms(parser, MEMORY_CAP)
    add_json(parser)


def run(given: argparse.Namespace) -> Outcome:
    """See `Command`."""
    require_compiler()
    from ..check.pass_check import terms_of
    from ..debug.reduce_file import reduce_source, reduced_json, show_reduced

    source = source_of(given)
    terms = terms_of(given.seed, given.memory_cap, given.ranges)
    output = output_file(given)
    found = reduce_source(source, terms, given.seconds, output)
    return Outcome(0, lambda: show_reduced(found, output), lambda: reduced_json(found, output))
