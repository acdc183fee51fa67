"""`stretto passes`: the list, and each pass's page with its options."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from stretto.driver.pass_pages import UPSTREAM_LINES, PassOption, options_of
from stretto.passes import registry
from stretto.passes.registry import TABLE, UPSTREAM, names

from .conftest import Command


def test_the_list_has_a_line_for_every_pass(stretto: Command) -> None:
    done = stretto("passes")
    rows = [line.split(maxsplit=2) for line in done.out.splitlines()[1:]]
    assert (done.code, done.err) == (0, "")
    assert [row[0] for row in rows] == list(names())
    assert {row[0] for row in rows if row[1] == "mlir"} == set(UPSTREAM) == set(UPSTREAM_LINES)
    assert {row[0] for row in rows if row[1] == "stretto"} == set(TABLE)
    assert ["fold-layers", "stretto"] in [row[:2] for row in rows] and min(len(row[2]) for row in rows) > 20


def test_a_page_shows_before_and_after_and_the_options(stretto: Command) -> None:
    done = stretto("passes", "place-arguments")
    assert done.code == 0 and done.out.startswith("place-arguments (")
    assert "place_arguments.py" in done.out.splitlines()[0]
    assert "Before   func @main" in done.out and "After    func @main" in done.out
    assert "  plan=Plan  required\n      The plan; its parameter, input" in done.out


@pytest.mark.parametrize("name", names())
def test_every_pass_has_a_page(name: str, stretto: Command) -> None:
    told = json.loads(stretto("passes", name, "--json").out)
    assert told["name"] == name and told["text"].startswith(told["line"]) and len(told["line"]) > 20
    if told["origin"] == "stretto":
        assert "Before" in told["text"] and "After" in told["text"]
        assert all(option["text"] for option in told["options"])


def test_a_page_of_mlir_says_that_there_are_no_options(stretto: Command) -> None:
    assert stretto("passes", "cse").out.endswith("Options\n  none\n")


def test_an_unknown_pass_is_answered_with_the_nearest(stretto: Command) -> None:
    done = stretto("passes", "fold-layer")
    assert (done.code, done.out) == (1, "")
    assert "error[E0410]" in done.err and 'did you mean "fold-layers"' in done.err


def test_options_have_type_default_and_unit() -> None:
    source = '''
class SplitAllReduce(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "split-all-reduce"
    min_bytes: int = 1 << 20
    """Leave smaller tensors alone
    (bytes)."""
    plan: Plan
    kind: Kind = Kind.RING
    """Which."""

    def run(self, module: Module) -> Report:
        count: int = 0
        return Report(count)
'''
    assert options_of(source) == (
        PassOption("min-bytes", "int", "1 << 20", "Leave smaller tensors alone (bytes)."),
        PassOption("plan", "Plan", None, ""),
        PassOption("kind", "Kind", "Kind.RING", "Which."),
    )


OTHERS = '''"""Do what another package does.

Before   a
After    b
"""
from dataclasses import dataclass
from typing import ClassVar
from stretto.passes.base import Pass, Report

@dataclass(frozen=True)
class Other(Pass):
    name: ClassVar[str] = "do-other-things"
    share: float = 0.5
    """How much (0 to 1)."""

    def run(self, module):
        return Report()
'''


def test_a_pass_of_another_package_is_listed_with_its_package(
    stretto: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "others_of_a_test.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_others", lambda: {"do-other-things": "others_of_a_test:Other"})
    row = next(line for line in stretto("passes").out.splitlines() if "do-other-things" in line)
    assert row.split(maxsplit=2)[1:] == ["others_of_a_test", "Do what another package does."]
    assert "share=float  default 0.5\n      How much (0 to 1)." in stretto("passes", "do-other-things").out
    sys.modules.pop("others_of_a_test")
