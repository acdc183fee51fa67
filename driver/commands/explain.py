"""`stretto explain`: what a program does, places and sends."""

from __future__ import annotations

import argparse

from .arguments import add_allow_ops, add_json
from .outcome import Outcome

HELP = "show a program's placements, communication and remarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument("folder", metavar="DIR", help="a program folder")
    parser.add_argument("--remarks", action="store_true", help="list every remark of the passes, with its place")
    add_allow_ops(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    from ...ops.allowed import allow_ops
    from ...runtime.program.program import Program
    from ..report.explain import explain
    from ..report.show_explanation import Detail, show_explanation

    allow_ops(*arguments.allow_ops)
    explanation = explain(Program.load(arguments.folder))
    detail = Detail.ALL if arguments.remarks else Detail.SUMMARY
    return Outcome(0, lambda: show_explanation(explanation, detail), explanation.to_json)
