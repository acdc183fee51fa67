"""`stretto explain`: what a program does, places and sends."""

from __future__ import annotations

import argparse

from .arguments import add_allow_ops, add_entry, add_json
from .outcome import Outcome

HELP = "show a program's placements, communication and remarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument("folder", metavar="DIR", help="a program folder")
    parser.add_argument("--remarks", action="store_true", help="list every remark of the passes, with its place")
    add_entry(parser, "all, one after the other")
    add_allow_ops(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    from ...ops.allowed import allow_ops
    from ...runtime.named_entries.program_set import ProgramSet
    from ..report.explain import explain
    from ..report.show_explanation import Detail, show_explanation
    from ..text.console import say

    allow_ops(*arguments.allow_ops)
    programs = ProgramSet.load(arguments.folder).selected(arguments.entry)
    explanations = {entry: explain(program) for entry, program in programs}
    detail = Detail.ALL if arguments.remarks else Detail.SUMMARY
    if not programs.has_names:
        [explanation] = explanations.values()
        return Outcome(0, lambda: show_explanation(explanation, detail), explanation.to_json)

    def show() -> None:
        for index, (entry, explanation) in enumerate(explanations.items()):
            say(f"{chr(10) if index else ''}entry    {entry}")
            show_explanation(explanation, detail)

    return Outcome(0, show, lambda: {"entries": {name: each.to_json() for name, each in explanations.items()}})
