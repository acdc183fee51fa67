"""`stretto reduce`: the smallest module on which a pass still fails."""

from __future__ import annotations

import argparse

from .arguments import MEMORY_CAP, add_check_options, add_json, add_source, output_file, positive, source_of
from .outcome import Outcome, require_compiler

HELP = "find the smallest module on which a pass still fails in the same way"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "Finds the first pass that fails or changes values or order, and the smallest module on which it still does. "
        "Prints both as one file, which opt, bisect and reduce read. Exit code 0 when there is such a pass."
    )
    add_source(parser)
    parser.add_argument("-o", "--output", metavar="OUT", help="file for the module; default, or -: standard output")
    parser.add_argument("--seconds", type=positive, default=60, metavar="S", help="time limit; default: 60")
    add_check_options(parser, MEMORY_CAP)
    add_json(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    require_compiler()
    from ..check.pass_check import check_options
    from ..debug.reduce_file import reduce_source, reduced_json, show_reduced

    source = source_of(arguments)
    options = check_options(arguments.seed, arguments.memory_cap, arguments.ranges)
    output = output_file(arguments)
    reduced = reduce_source(source, options, arguments.seconds, output)
    return Outcome(0, lambda: show_reduced(reduced, output), lambda: reduced_json(reduced, output))
