"""The worked case of docs/debugging.md, typed in as written: each command prints what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from .typing_in import blocks, type_in, working_in

PAGE = Path(__file__).parents[1] / "docs" / "debugging.md"


def test_the_worked_case_leads_from_the_wrong_number_to_the_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working_in(tmp_path, monkeypatch):
        done = blocks(PAGE)
        for each in done:
            type_in(each, tmp_path)
    assert sum(each.language == "console" for each in done) >= 7
