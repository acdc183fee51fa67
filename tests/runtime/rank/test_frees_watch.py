"""Ranks that keep a tensor behind the instruction that frees it are seen while they run."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.report import MEMORY
from stretto.runtime.rank import translate

from ..tiny_programs import linear


def test_the_executor_frees_what_the_program_frees() -> None:
    assert [row for row in check(linear(2)).rows if row.kind == MEMORY] == []


def test_an_executor_that_keeps_freed_tensors_has_a_row_that_names_the_instruction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def keeps(slots: Iterable[int]) -> str:
        return ""

    monkeypatch.setattr(translate, "_clear", keeps)
    report = check(linear(2))
    [row, *_] = [row for row in report.rows if row.kind == MEMORY]
    assert not report.passed and row.name == "the executor"
    assert "keeps the tensor in slot" in row.note and "which frees it" in row.note
