"""Parameters of a test of which the default run takes a subset; `pytest -m slow` runs the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some(first: Any, *others: Any) -> list[Any]:
    """Parameters of which the first alone is in the default run."""
    return only([first], [first, *others])


def only(default: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """All cases, of which those in `default` are in the default run; a tuple is a case of several arguments."""
    cases = list(cases)
    unknown = [case for case in default if case not in cases]
    assert not unknown, f"the default run names cases that there are not: {unknown}"
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[] if case in default else pytest.mark.slow)
        for case in cases
    ]
