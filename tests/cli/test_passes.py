"""`stretto passes`: the list, and each pass's page with its options."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
from stretto.driver.text import pass_document
from stretto.driver.text.pass_document import TEXT_TESTS
from stretto.driver.text.pass_options import PassOption, options_of
from stretto.driver.text.pass_pages import UPSTREAM_LINES, all_pages
from stretto.driver.text.pass_sources import PassSource
from stretto.dsl import Plan
from stretto.ir.module import Module
from stretto.passes import registry
from stretto.passes.base import Pass, Report
from stretto.passes.option_values import Range
from stretto.passes.pass_class import pass_class
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
    assert "  plan=path of a plan  required\n      The plan; its parameter, input" in done.out


@pytest.mark.parametrize("name", names())
def test_every_pass_has_a_page(name: str, stretto: Command) -> None:
    report = json.loads(stretto("passes", name, "--json").out)
    assert report["name"] == name and report["text"].startswith(report["line"]) and len(report["line"]) > 20
    if report["origin"] == "stretto":
        assert "Before" in report["text"] and "After" in report["text"]
        assert all(option["text"] for option in report["options"])


def test_a_page_of_mlir_leaves_its_options_to_mlir(stretto: Command) -> None:
    assert stretto("passes", "cse").out.endswith("Options\n  MLIR's own, in braces\n")


def test_an_unknown_pass_is_answered_with_the_nearest(stretto: Command) -> None:
    done = stretto("passes", "fold-layer")
    assert (done.code, done.out) == (1, "")
    assert "error[E0410]" in done.err and 'did you mean "fold-layers"' in done.err


class Kind(StrEnum):
    RING = "ring"
    TREE = "tree"


@dataclass(frozen=True)
class SplitAllReduce(Pass):
    """A pass with an option of each kind."""

    name: ClassVar[str] = "split-all-reduce"
    plan: Plan
    min_bytes: Annotated[int, Range(0, unit="bytes")] = 1 << 20
    """Leave smaller tensors alone
    (bytes)."""
    kind: Kind = Kind.RING
    """Which."""
    eager: bool = False
    share: Annotated[float, Range(0, 1)] | None = None

    def run(self, module: Module) -> Report:
        count: int = 0
        return Report(count)


def test_options_have_type_default_and_unit() -> None:
    assert options_of(SplitAllReduce) == (
        PassOption("plan", "path of a plan", None, ""),
        PassOption("min-bytes", "integer of at least 0 bytes", "1048576", "Leave smaller tensors alone (bytes)."),
        PassOption("kind", "ring or tree", "ring", "Which."),
        PassOption("eager", "true or false", "false", ""),
        PassOption("share", "number from 0 to 1 or none", "none", ""),
    )


@pytest.mark.parametrize("name", TABLE)
def test_a_source_says_what_the_class_of_the_pass_does(name: str) -> None:
    source, cls = PassSource.of(name), pass_class(name)
    assert source.options == options_of(cls)
    assert source.levels == tuple(sorted(cls.levels))
    assert (source.file, source.text) == (inspect.getsourcefile(cls), inspect.getdoc(sys.modules[cls.__module__]))


def test_every_pass_of_ours_says_what_it_needs_and_keeps() -> None:
    assert [page.name for page in all_pages() if page.name in TABLE and not {"Needs", "Keeps"} <= set(page.facts)] == []


def test_a_pass_that_takes_one_level_says_so_first_of_what_it_needs() -> None:
    for page in all_pages():
        if page.name in TABLE:
            text = page.facts["Needs"].startswith("level `") and page.facts["Needs"].split("`")[1]
            assert (text or "any") == (page.levels[0] if len(page.levels) == 1 else "any"), page.name


def test_the_page_of_all_passes_is_the_one_that_docs_has(stretto: Command) -> None:
    done = stretto("passes", "--markdown")
    assert (done.code, done.err) == (0, "")
    kept = (TEXT_TESTS.parents[1] / "docs" / "passes.md").read_text(encoding="utf-8")
    assert done.out == kept, "the passes have changed: stretto passes --markdown > docs/passes.md"


def test_the_page_of_all_passes_needs_a_checkout(
    stretto: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_document, "TEXT_TESTS", tmp_path)
    done = stretto("passes", "--markdown")
    assert (done.code, done.out) == (1, "") and "error[E0507]" in done.err and "in a checkout" in done.err


def test_one_page_is_no_markdown(stretto: Command) -> None:
    assert stretto("passes", "cse", "--markdown").code == 2


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
    assert "share=number  default 0.5\n      How much (0 to 1)." in stretto("passes", "do-other-things").out
    sys.modules.pop("others_of_a_test")
