"""`run DIR --check` compares the program with the text of the plan that its manifest has."""

from __future__ import annotations

from dataclasses import replace

from stretto.driver.readings.plan_rows import rows_of_folder_plan
from stretto.runtime.program.program import Program

from .test_every_item_is_read import SHARDED, compiled


def rows(text: str | None, *, with_model: bool = True) -> list[tuple[str, str]]:
    model, program = compiled("net", SHARDED)
    found = rows_of_folder_plan(_stating(program, text), model if with_model else None)
    return [(row.name, row.note) for row in found]


def _stating(program: Program, text: str | None) -> Program:
    source = {**program.manifest.source, **({} if text is None else {"plan_text": text})}
    return replace(program, manifest=replace(program.manifest, source=source))


def test_a_program_that_follows_its_plan_has_no_row_and_one_without_a_text_neither() -> None:
    assert rows(SHARDED) == rows(SHARDED, with_model=False) == rows(None) == []


def test_a_program_of_another_plan_has_rows() -> None:
    reordered = SHARDED.replace("(a=2, b=2)", "(b=2, a=2)")
    assert rows(reordered, with_model=False) == [("mesh", "the program has a=2, b=2; the plan says b=2, a=2")]
    assert rows(SHARDED.replace("inputs dim 0", "inputs dim 1"), with_model=False)[0][0] == "x"
    assert rows(SHARDED.replace('"*.0.up" columns', '"*.0.up" rows'))[0][0] == "layers.0.up.weight"


def test_a_text_that_is_no_plan_has_a_row() -> None:
    [(name, note)] = rows("shard nothing")
    assert name == "text" and note.startswith("it is no plan: E0")
