"""`stretto run`: run a program for some steps, or check it."""

from __future__ import annotations

import argparse

from .arguments import (
    add_allow_unjudged,
    add_entry,
    add_json,
    add_loading,
    add_program_target,
    add_ranges,
    named_sizes,
    positive,
    read_loading,
)
from .outcome import Outcome, exit_code, require_compiler

HELP = "run a program for some steps, or check it against one device"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument("folder", metavar="DIR", help="a program folder")
    parser.add_argument("--ranks", choices=("threads", "processes"), default="threads", help="default: threads")
    parser.add_argument("--steps", type=positive, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--sizes", type=named_sizes, default={}, metavar="NAME=N,NAME=N",
        help="values of the sizes that compile --dynamic named; default: as compiled",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true",
        help="compare with the exported forward in DIR, on one device; exit 1 if it differs, 3 if nothing could be "
        "compared",
    )  # fmt: skip
    add_allow_unjudged(parser)
    parser.add_argument(
        "--against", default="", metavar="TARGET",
        help="with --check: compare with eager PyTorch, the model of this target, which is loaded and executed",
    )  # fmt: skip
    add_ranges(parser)
    add_entry(parser, "the only one")
    parser.add_argument(
        "--detect-anomaly", action="store_true", help="name the operation that makes the first NaN; slow"
    )
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="also write when each rank ran each instruction, for Perfetto or chrome://tracing",
    )
    add_loading(parser)
    add_program_target(parser)
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    from ..check.run_program import RunJob, check_json, run_check, run_for_steps, show_check, show_steps, steps_json

    read_loading(arguments)
    if arguments.check and arguments.detect_anomaly:
        arguments.usage_error("--detect-anomaly is for steps; it cannot be combined with --check")
    if arguments.trace and (arguments.check or arguments.ranks == "processes"):
        arguments.usage_error("--trace is of steps with --ranks threads; in a script, stretto.trace(FILE) is for both")
    if arguments.against:
        if not arguments.check:
            arguments.usage_error("--against names the reference of a check; add --check")
        require_compiler()
    job = RunJob(
        arguments.folder,
        arguments.ranks,
        arguments.steps,
        arguments.detect_anomaly,
        arguments.sizes,
        arguments.against,
        {name: (low, high) for name, low, high in arguments.ranges},
        arguments.entry,
        arguments.trace or "",
        arguments.runs_on,
    )
    if not arguments.check:
        program, steps = run_for_steps(job)
        return Outcome(0, lambda: show_steps(program, job, steps), lambda: steps_json(program, job, steps))
    report, comparison = run_check(job)
    code = exit_code(passed=report.passed, unjudged=report.is_unjudged, allow_unjudged=arguments.allow_unjudged)
    return Outcome(code, lambda: show_check(report, comparison), lambda: check_json(job, report, comparison))
