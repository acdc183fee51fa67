"""`stretto zoo`: published systems as plans, each checked on a tiny model."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_json
from .outcome import Outcome, exit_code, require_compiler

HELP = "check plans of published systems on tiny models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "Compiles each row in float64, verifies capture, every pass and the program, proves its order, and compares it "
        "with eager PyTorch. Exit code 0 when all rows pass; 3 when none fails, but one could not be compared; else 1."
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="rows of the zoo; default: all, which takes minutes")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where the rows are; default: examples/zoo beside the package"
    )
    parser.add_argument(
        "--simulate",
        action="store_true",
        help="simulate published runs of the rows that have a headline.toml, and check nothing; it takes minutes",
    )
    parser.add_argument("--markdown", action="store_true", help="print docs/zoo.md, and check nothing")
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    if arguments.markdown and (arguments.names or arguments.json or arguments.simulate):
        arguments.usage_error("--markdown prints all rows; it takes no NAME, no --json and no --simulate")
    require_compiler()
    from ..zoo.rows import find_rows

    rows = find_rows(arguments.names, arguments.folder)
    if arguments.markdown:
        from ..text.console import say
        from ..zoo.zoo_document import zoo_document

        text = zoo_document(rows)
        return Outcome(0, lambda: say(text.rstrip("\n")))
    if arguments.simulate:
        from ..zoo.headlines import show_headlines, simulate_rows

        points = simulate_rows(rows)
        return Outcome(0, lambda: show_headlines(points), lambda: {"points": [each.to_json() for each in points]})
    from ..zoo.check_zoo import check_zoo, show_zoo

    report = check_zoo(rows)
    code = exit_code(passed=report.passed, unjudged=report.is_unjudged, allow_unjudged=False)
    return Outcome(code, lambda: show_zoo(report), report.to_json)
