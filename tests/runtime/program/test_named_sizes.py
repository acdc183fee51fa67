"""Programs with named sizes: bound to other sizes, saved, read, and refused where they do not hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stretto.runtime.errors import ProgramError
from stretto.runtime.program.named_sizes import NamedSize, Symbolic
from stretto.runtime.program.program import Program
from stretto.runtime.reading.json_fields import Malformed
from stretto.runtime.threads.session import RankThreads

from ..tiny_programs import linear


def named(**changes: Any) -> Program:
    """`linear`, whose batch is a named size: x is (rows, 4), and no number of the code follows from it."""
    symbolic = Symbolic(
        (NamedSize("rows", 5, 2, 64),),
        ("rows != 13",),
        {"inputs": {"1": {"shape": {"0": "rows"}}}, "outputs": {"1": {"shape": {"0": "rows"}}}},
        {"inputs": {"1": {"shape": {"0": "rows"}}}},
    )
    return replace(linear(), symbolic=replace(symbolic, **changes))


def test_a_bound_program_runs_with_its_sizes() -> None:
    bound = named().bind({"rows": 7})
    assert bound.of_kind("input")[0].shape == (7, 4)
    assert bound.symbolic is None
    x, w = torch.randn(7, 4), torch.randn(4, 3)
    with RankThreads(bound) as session:
        [loss, *_], _ = session.forward([w], [], [x])
    assert torch.allclose(loss, (x @ w).pow(2).sum(), rtol=1e-5)


def test_instructions_without_sizes_are_shared() -> None:
    program = named()
    before, after = program.functions["main"], program.bind({"rows": 9}).functions["main"]
    assert all(a is b for a, b in zip(before.code, after.code, strict=True))


def test_the_reference_is_bound_with_the_program() -> None:
    single = named().bind({"rows": 7}).single_device
    assert single is not None
    assert single.inputs[1].shape == (7, 4)


def test_bound_programs_of_other_sizes_have_other_hashes() -> None:
    program = named()
    assert program.bind({"rows": 7}).hash != program.bind({"rows": 8}).hash
    assert program.bind({"rows": 5}).hash == program.hash


def test_named_sizes_survive_a_folder(tmp_path: Path) -> None:
    named().save(tmp_path / "p")
    loaded = Program.load(tmp_path / "p")
    assert loaded.symbolic == named().symbolic
    assert loaded.bind({"rows": 7}).hash == named().bind({"rows": 7}).hash


def test_a_folder_without_sizes_has_no_such_file(tmp_path: Path) -> None:
    linear().save(tmp_path / "p")
    assert not (tmp_path / "p" / "sizes.json").exists()
    assert Program.load(tmp_path / "p").symbolic is None


def test_sizes_added_to_a_folder_later_are_refused(tmp_path: Path) -> None:
    linear().save(tmp_path / "p")
    (tmp_path / "p" / "sizes.json").write_text(json.dumps(named().symbolic.to_json()))  # type: ignore[union-attr]
    with pytest.raises(ProgramError) as error:
        Program.load(tmp_path / "p")
    assert error.value.code == "E0303"


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ({"rows": 65}, "rows = 65 is outside of 2..64"),
        ({"rows": 1}, "rows = 1 is outside of 2..64"),
        ({"rows": 13}, "it needs rows != 13"),
        ({}, "'rows' is not given"),
        ({"rows": 4, "columns": 3}, "it has no size 'columns'"),
    ],
)
def test_sizes_that_it_does_not_hold_for_are_refused(sizes: dict[str, int], why: str) -> None:
    with pytest.raises(ProgramError) as error:
        named().bind(sizes)
    assert error.value.code == "E0309"
    assert why in str(error.value)


def test_a_program_without_named_sizes_cannot_be_bound() -> None:
    with pytest.raises(ProgramError) as error:
        linear().bind({"rows": 4})
    assert error.value.code == "E0309"


@pytest.mark.parametrize(
    "places",
    [
        {"inputs": {"1": {"shape": {"0": "rows *"}}}},
        {"inputs": {"1": {"shape": 3}}},
        {"inputs": ["rows"]},
    ],
)
def test_a_file_that_is_no_tree_of_expressions_is_malformed(places: Any) -> None:
    value = {**named().symbolic.to_json(), "program": places}  # type: ignore[union-attr]
    with pytest.raises(Malformed):
        Symbolic.from_json(value)


@pytest.mark.parametrize(
    "places",
    [
        {"inputs": {"1": {"name": "rows"}}},
        {"inputs": {"7": {"shape": {"0": "rows"}}}},
        {"inputs": {"1": {"shape": {"4": "rows"}}}},
        {"inputs": {"1": {"shape": {"0": "width"}}}},
        {"inputs": {"1": {"shape": {"0": "5 // (rows - 4)"}}}},
        {"functions": {"main": {"slots": "rows"}}},
        {"functions": {"other": {"code": {}}}},
        {"inputs": "rows"},
    ],
)
def test_expressions_where_no_number_is_are_malformed(places: Any) -> None:
    with pytest.raises(ProgramError) as error:
        named(program=places).bind({"rows": 4})
    assert error.value.code == "E0306"


def test_sizes_that_break_a_program_are_found_when_it_is_bound() -> None:
    with pytest.raises(ProgramError) as error:
        named(program={"inputs": {"0": {"shards": {"0": {"chunk": "rows * 9"}}}}}).bind({"rows": 4})
    assert error.value.code == "E0306"
