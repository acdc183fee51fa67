"""`stretto cache`: the programs that earlier compiles left on disk."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from ...diagnostics import StrettoError
from .arguments import add_json
from .outcome import Outcome

HELP = "show or clear the cache of compiled programs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument("--clear", action="store_true", help="remove all entries")
    add_json(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`. Raises StrettoError E0508 for entries that cannot be removed or listed."""
    from ..cache.location import VARIABLE
    from ..cache.store import CacheSize, ProgramStore
    from ..text.console import count_text, say, size_text

    store = ProgramStore.of_user()
    if store is None:
        off: Mapping[str, object] = {"folder": None, "entries": 0, "bytes": 0}
        return Outcome(0, lambda: say(f"the compile cache is off ({VARIABLE})"), lambda: off)
    try:
        size = store.size()
        if arguments.clear:
            store.clear()
    except OSError as error:
        raise StrettoError(
            "E0508",
            f"the compile cache in '{store.folder}' cannot be {'cleared' if arguments.clear else 'read'}: "
            f"{error.strerror or error}",
            help=f"remove the folder, or set {VARIABLE} to another one",
        ) from None

    def show(size: CacheSize = size) -> None:
        removed = "removed " if arguments.clear else ""
        say(f"{removed}{count_text(size.entries, 'program')}, {size_text(size.size_bytes)}, in {store.folder}")

    return Outcome(0, show, lambda: {"folder": str(store.folder), "entries": size.entries, "bytes": size.size_bytes})
