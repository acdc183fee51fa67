"""`stretto verify`: a program with the order prover, or passes by their values."""

from __future__ import annotations

import argparse
import os

from .arguments import MEMORY_CAP, add_json, add_pipeline, add_terms
from .outcome import Outcome, require_compiler

HELP = "prove a program's order, or compare values before and after passes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "Exit code 0 when the program is safe, or every pass leaves the values as they were; 1 when not, and when "
        "nothing could be compared (not checked)."
    )
    parser.add_argument("path", metavar="DIR|FILE", help="a program folder; with -p a module, - for standard input")
    add_pipeline(parser, required=False)
    add_terms(parser, f"what a rank of the program may take, such as 80GiB; with -p {MEMORY_CAP}")
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(given: argparse.Namespace) -> Outcome:
    """See `Command`."""
    return _program(given) if given.pipeline is None else _passes(given)


def _program(given: argparse.Namespace) -> Outcome:
    if given.path == "-" or os.path.isfile(given.path):
        given.usage_error("a module is verified pass by pass: name the passes with -p PIPELINE")
    from ...runtime.prover.dynamo_imports import meta_kernels_without_dynamo
    from ..check.verify_program import show_verdict, verify_program

    with meta_kernels_without_dynamo():
        proved = verify_program(given.path, given.memory_cap)
    return Outcome(0 if proved.verdict.safe else 1, lambda: show_verdict(proved), proved.to_json)


def _passes(given: argparse.Namespace) -> Outcome:
    if os.path.isdir(given.path):
        given.usage_error("-p is for a module's file; a program folder is proved without it")
    require_compiler()
    from ..check.pass_check import terms_of
    from ..check.verify_passes import PassesJob, show_passes, verify_passes
    from ..debug.module_source import read_source

    source = read_source(given.path, given.pipeline)
    report = verify_passes(PassesJob(source, terms_of(given.seed, given.memory_cap, given.ranges)))
    return Outcome(0 if report.passed else 1, lambda: show_passes(report), report.to_json)
