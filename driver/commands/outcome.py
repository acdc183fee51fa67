"""The result of a command, and the check for the compiler, which a base install lacks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from ...diagnostics import StrettoError

UNJUDGED = 3
"""The exit code of a check that found nothing wrong, but could not compare anything."""
_COMPILER = ("torch_mlir", "lark", "networkx")


@dataclass(frozen=True)
class Outcome:
    """The result of a command: the exit code, and how to print it as text or as JSON."""

    code: int
    show: Callable[[], None]
    to_json: Callable[[], Mapping[str, object]] = dict


def exit_code(*, passed: bool, unjudged: bool, allow_unjudged: bool) -> int:
    """The exit code of a check: 0 where it passed, 3 where nothing could be compared, else 1."""
    if passed or (unjudged and allow_unjudged):
        return 0
    return UNJUDGED if unjudged else 1


class Command(Protocol):
    """A module of this folder that is a command."""

    HELP: str
    """One line for the list of commands."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments to its parser."""

    def run(self, arguments: argparse.Namespace) -> Outcome:
        """Run the command. Prints while it runs go to stderr; `Outcome.show` prints the result."""
        ...


def require_compiler() -> None:
    """Raise E0501 where a package that the compiler needs is not installed."""
    missing = missing_of_compiler()
    if missing:
        raise StrettoError(
            "E0501",
            f"the compiler is not installed: {', '.join(missing)} cannot be imported",
            help='pip install "stretto[compiler]"; compiled programs run without it',
        )


def missing_of_compiler() -> list[str]:
    """The packages of the compiler that are not installed."""
    return [name for name in _COMPILER if find_spec(name) is None]
