"""`compile --check` for inference makes steps with states, in which faults of what stays with the ranks show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stretto.backends.program import write_into_states
from stretto.driver.calls.comparison import compare_calls
from stretto.dsl.plan import Plan
from stretto.frontend.captured import Mode
from stretto.frontend.targets.target import Request
from stretto.runtime.checks.report import CheckRow, Verdict
from stretto.runtime.threads import resident_states

SOURCE = """
import torch
from torch import nn

class Cache(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(8, 8)
        self.register_buffer("keys", torch.zeros(2, 8))
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x):
        old = self.keys.clone()
        self.keys.add_(self.project(x))
        self.steps.add_(1.0)
        return (self.keys * 2 + old) * self.steps

class Place(nn.Module):
    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("keys", torch.zeros(2, 8))

    def forward(self, x):
        self.keys[0] = self.project(x)[0]
        return self.out(self.keys)

def place():
    return Place(), {"x": torch.randn(2, 8)}

def cache():
    return Cache(), {"x": torch.randn(2, 8)}
"""
WHOLE = "mesh (tp=2)"
CUT = 'mesh (tp=2)\nshard buffers "keys" dim 1 over tp'
COLUMNS = 'mesh (tp=2)\nshard "out" columns over tp'
UNEVEN = 'mesh (tp=3)\nshard buffers "keys" dim 1 over tp'


def rows(folder: Path, plan: str, target: str = "cache") -> list[CheckRow]:
    (folder / "model.py").write_text(SOURCE)
    found = compare_calls(f"{folder}/model.py:{target}", Request(Mode.INFER), Plan.parse(plan)).rows
    return [row for row in found if "(states, step" in row.name]


@pytest.mark.parametrize("plan", [pytest.param(WHOLE, marks=pytest.mark.slow), CUT, UNEVEN])
def test_steps_with_states_are_equal(tmp_path: Path, plan: str) -> None:
    found = rows(tmp_path, plan)
    assert {row.name for row in found} == {
        f"{name} (states, step {step})" for name in ("0", "keys", "steps") for step in (1, 2, 3, 4)
    }
    assert all(row.verdict is Verdict.EQUAL for row in found)


class Anything:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def read_last_at_any_place(right: Callable[..., None]) -> Callable[..., None]:
    def wrong(walk: Any, *args: Any) -> None:
        right(walk, *args)
        walk._last_read = dict.fromkeys(walk._last_read, Anything())

    return wrong


FAULTS: dict[str, tuple[object, str, Callable[[Any], Any], str, set[str]]] = {
    "an old value is read after a new one is written over it": (
        write_into_states._Walk, "__init__", read_last_at_any_place, CUT, {"0 (states, step 2)"},
    ),
    "a reset by the caller is not seen": (
        resident_states, "_version", lambda _: lambda tensor: (0, 0), CUT, {"0 (states, step 3)"},
    ),
    "uneven parts do not reach the caller's tensor": (
        resident_states, "windows", lambda _: lambda *given: [], UNEVEN, {"keys (states, step 1)"},
    ),
}  # fmt: skip
"""By meaning: a function, how it is replaced, a plan, and where it shows."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_states_shows_in_a_step(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, make, plan, shows = FAULTS[fault]
    monkeypatch.setattr(owner, name, make(getattr(owner, name)))
    assert shows <= {row.name for row in rows(tmp_path, plan) if row.differs}


def test_a_reset_shows_where_all_steps_write_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_states, "_version", lambda tensor: (0, 0))
    assert "0 (states, step 3)" in {row.name for row in rows(tmp_path, COLUMNS, "place") if row.differs}
