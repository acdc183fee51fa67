"""`stretto diff`: what differs between two modules or two programs."""

from __future__ import annotations

import argparse
import os

from .arguments import add_entry, add_json
from .outcome import Outcome, require_compiler

HELP = "show what differs between two modules or two programs: ops, communication, bytes, memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "Counts are for one step of one rank. The peak memory of a program is that of `stretto verify`; that of a "
        "module is estimated from its types. Exit code 0 when both are equal, 1 when they differ."
    )
    parser.add_argument("a", metavar="A", help="a module, or a program folder")
    parser.add_argument("b", metavar="B", help="another of the same kind")
    add_entry(parser, "the only one")
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    from ..report.diff import Difference, show_difference
    from ..report.summary import program_summary

    kinds = {os.path.isdir(path) for path in (arguments.a, arguments.b)}
    if len(kinds) > 1:
        arguments.usage_error("give two modules or two program folders; a program's module is in its ir.mlir")
    if kinds == {True}:
        difference = Difference(*(program_summary(each, arguments.entry) for each in (arguments.a, arguments.b)))
    else:
        require_compiler()
        from ..ir_files.module_source import read_source
        from ..report.module_summary import module_summary

        difference = Difference(*(module_summary(read_source(path, None)) for path in (arguments.a, arguments.b)))
    return Outcome(0 if difference.is_equal else 1, lambda: show_difference(difference), difference.to_json)
