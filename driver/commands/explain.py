"""`stretto explain`: what a program does, places and sends."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .arguments import add_entry, add_json, add_loading, add_program_target, read_loading
from .outcome import Outcome, require_compiler

if TYPE_CHECKING:
    from ...runtime.named_entries.program_set import ProgramSet
    from ..report.explain import Explanation

HELP = "show a program's placements, communication and remarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument("folder", metavar="DIR", nargs="?", help="a program folder")
    parser.add_argument("--remarks", action="store_true", help="list every remark of the passes, with its place")
    add_entry(parser, "all, one after the other")
    parser.add_argument("--lanes", metavar="FILE", help="also draw the lanes of repeated layers, as an SVG picture")
    parser.add_argument(
        "--streams",
        metavar="RANK",
        type=int,
        nargs="?",
        const=0,
        help="show what a rank (default: 0) issues to the streams of a GPU, proved for all ranks; needs no GPU",
    )
    parser.add_argument("--graphs", action="store_true", help="with --streams: as CUDA graphs")
    parser.add_argument("--pictures", action="store_true", help="write the pictures of docs/overlap.md, in a checkout")
    add_loading(parser)
    add_program_target(parser)
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    if arguments.pictures:
        return _pictures(arguments)
    if arguments.folder is None:
        arguments.usage_error("the following arguments are required: DIR")
    if arguments.graphs and arguments.streams is None:
        arguments.usage_error("--graphs goes with --streams")
    from ...runtime.named_entries.program_set import ProgramSet
    from ..report.explain import explain
    from ..report.show_explanation import Detail, show_explanation
    from ..text.console import say

    read_loading(arguments)
    programs = ProgramSet.load(arguments.folder).selected(arguments.entry).on(arguments.runs_on)
    if arguments.streams is not None:
        return _streams(programs, arguments)
    explanations = {entry: explain(program) for entry, program in programs}
    if arguments.lanes:
        _draw(explanations, arguments.lanes)
    detail = Detail.ALL if arguments.remarks else Detail.SUMMARY
    if not programs.has_names:
        [explanation] = explanations.values()
        return Outcome(0, lambda: show_explanation(explanation, detail), explanation.to_json)

    def show() -> None:
        for index, (entry, explanation) in enumerate(explanations.items()):
            say(f"{chr(10) if index else ''}entry    {entry}")
            show_explanation(explanation, detail)

    return Outcome(0, show, lambda: {"entries": {name: each.to_json() for name, each in explanations.items()}})


def _streams(programs: ProgramSet, arguments: argparse.Namespace) -> Outcome:
    """What a rank issues to the streams of a GPU."""
    from ..report.streams import show_streams, stream_program
    from ..text.console import say

    rank = arguments.streams
    for _, program in programs:
        if not 0 <= rank < program.mesh.ranks:
            arguments.usage_error(f"--streams {rank}: the ranks of the program are 0 to {program.mesh.ranks - 1}")
    found = {entry: stream_program(program, rank, graphs=arguments.graphs) for entry, program in programs}
    if not programs.has_names:
        [only] = found.values()
        return Outcome(0, lambda: show_streams(only), only.to_json)

    def show() -> None:
        for entry, each in found.items():
            say(f"entry    {entry}")
            show_streams(each)

    return Outcome(0, show, lambda: {"entries": {name: each.to_json() for name, each in found.items()}})


def _draw(explanations: Mapping[str, Explanation], file: str) -> None:
    """The functions that are called more than once, else all."""
    from ..report.lanes_svg import svg
    from ..text.text_files import write_text

    functions = [each for explanation in explanations.values() for each in explanation.overlap]
    drawn = [each for each in functions if each.calls > 1] or functions
    write_text(file, svg([(f"{each.name}, called {each.calls} times", each) for each in drawn]))


def _pictures(arguments: argparse.Namespace) -> Outcome:
    if arguments.folder or arguments.lanes or arguments.json:
        arguments.usage_error("--pictures draws the pictures of the documentation; it takes no DIR, --lanes or --json")
    require_compiler()
    from ..pictures.overlap import write_pictures
    from ..text.console import say

    count = write_pictures()
    return Outcome(0, lambda: say(f"{count} pictures written"))
