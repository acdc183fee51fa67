"""`stretto passes`."""

from __future__ import annotations

import argparse

from .arguments import add_json
from .outcome import Outcome, require_compiler

HELP = "list the passes, or show one's page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="a pass; default: list all")
    add_json(parser)


def run(given: argparse.Namespace) -> Outcome:
    """See `Command`."""
    require_compiler()
    from ..pass_pages import all_pages, pass_page, show_list, show_page

    if given.name is not None:
        page = pass_page(given.name)
        return Outcome(0, lambda: show_page(page), page.to_json)
    pages = all_pages()
    return Outcome(0, lambda: show_list(pages), lambda: {"passes": [page.to_json() for page in pages]})
