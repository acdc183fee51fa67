"""`stretto verify`: a program's order and values, or passes by their values."""

from __future__ import annotations

import argparse
import os

from .arguments import (
    MEMORY_CAP,
    add_allow_unjudged,
    add_check_options,
    add_entry,
    add_json,
    add_loading,
    add_pipeline,
    add_target_options,
    check_target_options,
    is_target,
    read_loading,
    size,
)
from .outcome import UNJUDGED, Outcome, exit_code, missing_of_compiler, require_compiler

HELP = "prove a program's order and judge its values, or check that passes keep the values"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "Exit code 0 when the program is safe and computes what its module does, or every pass keeps the values; 3 "
        "when nothing could be compared (not judged), for a program folder with --values; 1 otherwise."
    )
    parser.add_argument(
        "path", metavar="DIR|FILE|TARGET",
        help="a program folder; with -p a module, - for standard input; with --plan a target",
    )  # fmt: skip
    parser.add_argument(
        "--plan", metavar="FILE", help="check capture of the target by eager PyTorch, then all passes of this plan"
    )
    add_target_options(parser)
    add_pipeline(parser, required=False)
    add_check_options(parser, f"memory of one rank of the program, such as 80GiB; with -p: {MEMORY_CAP}")
    add_allow_unjudged(parser)
    parser.add_argument(
        "--values", action="store_true", help="exit 3 where the values of a program folder could not be judged"
    )
    parser.add_argument(
        "--values-cap", type=size, metavar="SIZE",
        help="memory that judging the values of a program folder may take, all ranks together; default: 512MiB",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=("nccl", "gloo"),
        help="what carries the collectives of a program folder: nccl, one launch order over all groups (default), or "
        "gloo, an order in each group",
    )  # fmt: skip
    add_entry(parser, "all")
    add_loading(parser)
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    read_loading(arguments)
    if arguments.plan is not None:
        return _target(arguments)
    return _program(arguments) if arguments.pipeline is None else _passes(arguments)


def _program(arguments: argparse.Namespace) -> Outcome:
    if arguments.path == "-" or os.path.isfile(arguments.path):
        arguments.usage_error("a module is verified pass by pass; name the passes with -p PIPELINE")
    if is_target(arguments.path) and not os.path.isdir(arguments.path):
        arguments.usage_error("a target is verified under a plan; name its file with --plan FILE")
    from ...runtime.dynamo_imports import meta_kernels_without_dynamo
    from ...runtime.program.program import Program
    from ...runtime.prover.queues import Backend
    from ..check.verify_program import NoCompiler, Values, show_verdict, verify_program

    def judge(program: Program) -> Values:
        if missing_of_compiler():
            return NoCompiler()
        from ..check.folder_values import judge_values
        from ..check.pass_check import check_options

        names = {each.name for each in program.inputs}
        is_entry = program.shared_weights is not None  # the range of an input that only another entry has is its own
        ranges = [each for each in arguments.ranges if each[0] in names or not is_entry]
        return judge_values(program, check_options(arguments.seed, arguments.values_cap, ranges))

    with meta_kernels_without_dynamo():
        backend = Backend(arguments.backend or "nccl")
        proved = verify_program(arguments.path, arguments.memory_cap, judge, backend, arguments.entry)
    code = 0 if proved.passed else 1
    if arguments.values and not proved.is_judged and not arguments.allow_unjudged:
        code = UNJUDGED
    return Outcome(code, lambda: show_verdict(proved), proved.to_json)


def _target(arguments: argparse.Namespace) -> Outcome:
    if arguments.entry:
        arguments.usage_error("--entry is of a program folder; an entry of a target is FILE.py:FUNCTION.ENTRY")
    if arguments.pipeline is not None:
        arguments.usage_error("--plan says which passes run; leave out -p")
    if os.path.isdir(arguments.path):
        arguments.usage_error("--plan is for a target; a program folder is verified without it")
    check_target_options(arguments, arguments.path)
    require_compiler()
    from ..check.pass_check import check_options
    from ..check.verify_passes import show_passes
    from ..check.verify_target import TargetJob, verify_target

    options = check_options(arguments.seed, arguments.memory_cap, arguments.ranges)
    job = TargetJob(arguments.path, arguments.plan, arguments.mode, arguments.batch, arguments.seq, options)
    report = verify_target(job)
    code = exit_code(passed=report.passed, unjudged=report.is_unjudged, allow_unjudged=arguments.allow_unjudged)
    return Outcome(code, lambda: show_passes(report), report.to_json)


def _passes(arguments: argparse.Namespace) -> Outcome:
    if os.path.isdir(arguments.path):
        arguments.usage_error("-p is for the file of a module; a program folder is proved without it")
    require_compiler()
    from ..check.pass_check import check_options
    from ..check.verify_passes import PassesJob, show_passes, verify_passes
    from ..ir_files.module_source import read_source

    source = read_source(arguments.path, arguments.pipeline)
    report = verify_passes(PassesJob(source, check_options(arguments.seed, arguments.memory_cap, arguments.ranges)))
    code = exit_code(passed=report.passed, unjudged=report.is_unjudged, allow_unjudged=arguments.allow_unjudged)
    return Outcome(code, lambda: show_passes(report), report.to_json)
