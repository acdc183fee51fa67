"""`stretto opt`."""

from __future__ import annotations

import argparse

from .arguments import add_json, add_pipeline, output_file
from .outcome import Outcome, require_compiler

HELP = "run passes on a module of the IR and print what they leave"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="-",
        help="a module, a reproducer, or a folder that compile --dump-ir wrote; default: standard input",
    )  # fmt: skip
    add_pipeline(parser, required=False, also="; default: what the reproducer or the folder names")
    parser.add_argument("-o", "--output", metavar="OUT", help="write the module there; default, or -: standard output")
    parser.add_argument(
        "--print-after", action="append", default=[], metavar="PASS", help="print the module after a pass, to stderr"
    )
    parser.add_argument("--print-after-all", action="store_true", help="print the module after every pass")
    parser.add_argument("--print-changed", action="store_true", help="print the module after passes that change it")
    parser.add_argument("--time-passes", action="store_true", help="say how long each pass took")
    parser.add_argument("--remarks", action="store_true", help="print what each pass did and declined, and where")
    parser.add_argument("--no-verify", action="store_true", help="verify neither the module nor what passes leave")
    parser.add_argument(
        "--reproducer",
        metavar="FILE",
        help="if a pass fails, write the module before it and the pass into FILE, which opt runs again without -p; "
        "if none fails, FILE is not written",
    )
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(given: argparse.Namespace) -> Outcome:
    """See `Command`."""
    require_compiler()
    from ...passes.manager import Verification
    from ..debug.opt import OptJob, optimize, optimized_json, show_optimized
    from ..ir_files.module_source import read_source

    source = read_source(given.file, given.pipeline)
    if source.pipeline is None:
        given.usage_error("name the passes with -p PIPELINE")
    job = OptJob(
        source,
        output_file(given),
        tuple(given.print_after),
        given.print_after_all,
        given.print_changed,
        given.time_passes,
        given.remarks,
        Verification.NEVER if given.no_verify else Verification.AFTER_EACH,
        given.reproducer,
    )
    done = optimize(job)
    return Outcome(0, lambda: show_optimized(job, done), lambda: optimized_json(job, done))
