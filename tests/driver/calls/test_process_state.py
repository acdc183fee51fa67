"""What a call leaves behind in the process is named."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
import torch
from stretto.driver.calls.process_state import noting_changes
from torch.distributions import Distribution
from torch.nn import functional


def changes(monkeypatch: pytest.MonkeyPatch, leave: Callable[[pytest.MonkeyPatch], object]) -> set[str]:
    """What is noted of a block; all is as before afterwards."""
    found: set[str] = set()
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.rand(())
        with noting_changes(found):
            leave(monkeypatch)
    random.setstate(state)
    return found


LEFT: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "torch's random state": lambda patch: torch.manual_seed(torch.initial_seed()),
    "Python's random state": lambda patch: random.random(),
    "environment variables": lambda patch: patch.setenv("STRETTO_LEFT", "1"),
    "torch.distributions.Distribution._validate_args": lambda patch: patch.setattr(
        Distribution, "_validate_args", not Distribution._validate_args
    ),
    "torch.nn.functional.dropout": lambda patch: patch.setattr(functional, "dropout", lambda x: x),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_is_left_changed_is_named(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    assert changes(monkeypatch, LEFT[what]) == {what}


def test_what_is_undone_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def undone(patch: pytest.MonkeyPatch) -> None:
        with torch.no_grad(), patch.context() as inner:
            inner.setitem(os.environ, "STRETTO_LEFT", "1")
            torch.zeros(1)

    assert changes(monkeypatch, undone) == set()
