"""`stretto passes`: the list of passes, and the page of one."""

from __future__ import annotations

import argparse

from .arguments import add_json
from .outcome import Outcome, require_compiler

HELP = "list the passes, or show the page of one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="a pass; default: list all")
    parser.add_argument("--markdown", action="store_true", help="print docs/passes.md, in a checkout")
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    if arguments.markdown and (arguments.name is not None or arguments.json):
        arguments.usage_error("--markdown prints all passes; it takes no NAME and no --json")
    require_compiler()
    from ..text.pass_pages import all_pages, pass_page, show_list, show_page

    if arguments.markdown:
        from ..text.console import say
        from ..text.pass_document import passes_document

        text = passes_document()
        return Outcome(0, lambda: say(text.rstrip("\n")))
    if arguments.name is not None:
        page = pass_page(arguments.name)
        return Outcome(0, lambda: show_page(page), page.to_json)
    pages = all_pages()
    return Outcome(0, lambda: show_list(pages), lambda: {"passes": [page.to_json() for page in pages]})
