"""What a command gives back, and what it may need: the compiler, which a base install lacks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from ...diagnostics import StrettoError

_COMPILER = ("torch_mlir", "lark", "networkx")


@dataclass(frozen=True)
class Outcome:
    """What a command found: the exit code, and two ways to say it."""

    code: int
    show: Callable[[], None]
    to_json: Callable[[], Mapping[str, object]] = dict


class Command(Protocol):
    """A module of this folder that is a command."""

    HELP: str
    """One line, for the list of commands."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Tell the parser what the command takes."""

    def run(self, given: argparse.Namespace) -> Outcome:
        """Do it. What it prints meanwhile goes to stderr; `Outcome.show` prints the result."""
        ...


def require_compiler() -> None:
    """E0501 where a package that the compiler needs is not installed."""
    missing = [name for name in _COMPILER if find_spec(name) is None]
    if missing:
        raise StrettoError(
            "E0501",
            f"the compiler is not installed: {', '.join(missing)} cannot be imported",
            help='pip install "stretto[compiler]"; programs that are compiled already run without it',
        )
