"""A command's argument parser, which proposes what a misspelt flag may mean before it misses arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """As argparse's own, but an unknown `--flag` is the first error and names the nearest known one."""

    def parse_known_args(  # type: ignore[override]  # typeshed has overloads for the type of the namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """See argparse."""
        given = list(sys.argv[1:] if args is None else args)
        known = list(self._option_string_actions)
        for text in takewhile(lambda each: each != "--", given):
            flag = text.partition("=")[0]
            if flag.startswith("--") and not any(each.startswith(flag) for each in known):
                self.error(unknown(f"unrecognized argument: {flag}", flag, known))
        return super().parse_known_args(given, namespace)


def unknown(problem: str, word: str, known: Iterable[str]) -> str:
    """The problem with an unknown word, and the known one that it resembles."""
    from ...dsl.spelling import nearest

    similar = nearest(word, known)
    return problem if similar is None else f'{problem}; did you mean "{similar}"?'
