"""What a fault of the source is: a function that does something a little wrong, as a tired engineer would have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from .finding import Finder
from .users_models import Case

Plant = Callable[[pytest.MonkeyPatch], None]
Wrong = Callable[..., Any]


@dataclass(frozen=True)
class SourceFault:
    """A fault of the source, and by what it must be found."""

    where: str
    """The room and the function."""
    plant: Plant
    found_by: Finder
    case: Case = Case("gpt", "dp_tp")
    """What the user compiles."""
    scenario: str = ""
    """For faults that a training loop shows: which of `training_loops.py`."""
    equivalent: str = ""
    """Why it changes nothing, where that is so."""
    missed: str = ""
    """Why no command sees it, though the numbers are wrong; the training loop `scenario` does. See docs/trust.md."""


def value(owner: object, name: str, wrong: object) -> Plant:
    """Another value, or another function, in place of one."""
    return lambda patch: patch.setattr(owner, name, wrong)


def entry(table: dict[str, Any], key: str, wrong: object) -> Plant:
    """Another entry of a table."""
    return lambda patch: patch.setitem(table, key, wrong)


def around(owner: object, name: str, make: Callable[[Wrong], Wrong]) -> Plant:
    """A function that is made of the right one."""
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def giving(owner: object, name: str, change: Callable[[Any], Any]) -> Plant:
    """A function whose result is changed."""

    def make(right: Wrong) -> Wrong:
        return lambda *args, **kwargs: change(right(*args, **kwargs))

    return around(owner, name, make)
