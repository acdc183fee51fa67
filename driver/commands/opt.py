"""`stretto opt`: run passes on a module."""

from __future__ import annotations

import argparse

from .arguments import add_json, add_pipeline, output_file
from .outcome import Outcome, require_compiler

HELP = "run passes on the text of a module and print the result"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="-",
        help="a module, a reproducer, or a folder that compile --dump-ir wrote; default: standard input",
    )  # fmt: skip
    add_pipeline(parser, required=False, also="; default: the passes that FILE names")
    parser.add_argument("-o", "--output", metavar="OUT", help="file for the module; default, or -: standard output")
    parser.add_argument(
        "--print-after", action="append", default=[], metavar="PASS", help="print the module after a pass, to stderr"
    )
    parser.add_argument("--print-after-all", action="store_true", help="print the module after every pass")
    parser.add_argument("--print-changed", action="store_true", help="print the module after passes that change it")
    parser.add_argument("--time-passes", action="store_true", help="print the seconds that each pass took")
    parser.add_argument("--remarks", action="store_true", help="print the remarks of each pass, with their places")
    parser.add_argument("--no-verify", action="store_true", help="do not verify the module, before or after passes")
    parser.add_argument(
        "--reproducer",
        metavar="FILE",
        help="if a pass fails, write the module before it, with the pass, to FILE; `stretto opt FILE` runs it again",
    )
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    require_compiler()
    from ...passes.manager import Verification
    from ..debug.opt import OptJob, optimize, optimized_json, show_optimized
    from ..ir_files.module_source import read_source

    source = read_source(arguments.file, arguments.pipeline)
    if source.pipeline is None:
        arguments.usage_error("name the passes with -p PIPELINE")
    job = OptJob(
        source,
        output_file(arguments),
        tuple(arguments.print_after),
        arguments.print_after_all,
        arguments.print_changed,
        arguments.time_passes,
        arguments.remarks,
        Verification.NEVER if arguments.no_verify else Verification.AFTER_EACH,
        arguments.reproducer,
    )
    optimized = optimize(job)
    return Outcome(0, lambda: show_optimized(job, optimized), lambda: optimized_json(job, optimized))
