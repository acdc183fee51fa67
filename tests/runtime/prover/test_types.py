"""Types that a program states are claims: readers take them, a proof derives them again and refuses a difference."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stretto.driver.report.summary import program_summary
from stretto.driver.report.traffic import traffic_of
from stretto.runtime import Program, ProgramError
from stretto.runtime.program.records import SlotType
from stretto.runtime.prover import Types, prove, shapes, with_derived_types

from ..pipe_program import Pipe
from ..tiny_programs import linear
from .programs import layered


@pytest.fixture
def kernel_runs() -> Iterator[functools._lru_cache_wrapper[Any]]:
    """The cache of meta kernels: its misses are the kernels that ran."""
    shapes._results.cache_clear()
    yield shapes._results
    shapes._results.cache_clear()


def with_type(program: Program, slot: int, type_: SlotType) -> Program:
    """The program, of which "main" says another type of a slot."""
    main = program.functions["main"]
    types = tuple(len(program.types) if index == slot else each for index, each in enumerate(main.types))
    functions = {**program.functions, "main": replace(main, types=types)}
    return replace(program, types=(*program.types, type_), functions=functions)


def test_reports_run_no_kernel_and_a_proof_runs_those_of_each_distinct_function_once(
    kernel_runs: functools._lru_cache_wrapper[Any],
    tmp_path: Path,
) -> None:
    ran = {}
    for layers in (4, 16):
        stating = with_derived_types(layered(layers))
        stating.save(tmp_path / f"{layers}")
        kernel_runs.cache_clear()
        traffic = traffic_of(stating)
        summary = program_summary(str(tmp_path / f"{layers}"))
        assert prove(stating, types=Types.STATED).safe
        assert kernel_runs.cache_info().misses == kernel_runs.cache_info().hits == 0
        verdict = prove(stating)
        ran[layers] = kernel_runs.cache_info().misses, kernel_runs.cache_info().hits
        assert verdict.safe and summary.peak_bytes == verdict.peak_bytes
        assert sum(traffic.values()) == 8 * layers == verdict.collectives
    assert ran[4] == ran[16] and ran[4][0] > 0


@pytest.mark.parametrize("program", [linear(), linear(4, width=6), layered(2), Pipe(dp=2).train()])
def test_stated_types_give_the_peak_and_the_traffic_that_derived_ones_give(program: Program, tmp_path: Path) -> None:
    stating = with_derived_types(program.validated).validated
    assert stating.states_types
    derived, stated = prove(program), prove(stating, types=Types.STATED)
    assert derived == prove(stating) and (stated.safe, stated.peaks) == (True, derived.peaks)
    assert traffic_of(program) == traffic_of(stating)
    stating.save(tmp_path / "program")
    again = Program.load(tmp_path / "program")
    assert again.types == stating.types and again.functions == stating.functions


@pytest.mark.parametrize(
    ("slot", "type_", "message"),
    [
        (3, SlotType("float32", (5, 4)), "slot 3 is said to hold float32 [5, 4], but holds float32 [5, 3]"),
        (3, SlotType("float64", (5, 3)), "slot 3 is said to hold float64 [5, 3], but holds float32 [5, 3]"),
        (4, SlotType("float32", (5, 3)), "slot 4 is said to hold float32 [5, 3], but holds a future of float32 [5, 3]"),
        (0, SlotType("float32", (4, 3)), 'argument 0 of "main" is said to hold float32 [4, 3]'),
    ],
)
def test_a_wrong_type_is_refused_with_its_slot_instruction_and_source_line(
    tmp_path: Path, slot: int, type_: SlotType, message: str
) -> None:
    wrong = with_type(with_derived_types(linear()), slot, type_)
    wrong.save(tmp_path / "wrong")
    verdict = prove(Program.load(tmp_path / "wrong"))
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0728"
    assert message in verdict.counterexample.message
    assert "model.py:" in str(verdict.counterexample.places[0])


def test_memory_is_not_understated_by_views() -> None:
    """A result of an op that copies cannot be stated as a view; one that is a view may be stated as a copy."""
    stating = with_derived_types(linear())
    main = stating.functions["main"]
    assert main.views == ((11, 2),)

    def viewing(*views: tuple[int, int]) -> Program:
        return replace(stating, functions={"main": replace(main, views=views)}).validated

    verdict = prove(viewing((11, 2), (12, 10)))
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0728"
    assert "slot 12 is said to lie in the memory of slot 10, but aten.mm.default copies" in verdict.render()
    assert prove(viewing(), types=Types.STATED).peak_bytes >= prove(viewing()).peak_bytes == prove(linear()).peak_bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"types": (SlotType("float32", (1 << 40, 1 << 40)),)}, "a tensor of more than 2^60 bytes"),
        ({"types": (SlotType("float32", (-1,)),)}, "negative extent"),
        ({"types": (SlotType("float32", (1,) * 65),)}, "65 dims"),
        ({"types": (SlotType("string", ()),)}, "'string' is not a dtype"),
        ({"main": {"types": (0,)}}, "expected 13, one for each slot, found 1"),
        ({"main": {"types": (99,) * 13}}, "there is no such type"),
        ({"main": {"views": ((11, 3),)}}, "slot 11 is no result of a torch op on slot 3"),
        ({"main": {"views": ((5, 4),)}}, "slot 5 is no result of a torch op on slot 4"),
        ({"main": {"views": ((11, 2), (11, 2))}}, "listed twice"),
        ({"main": {"types": (), "views": ((11, 2),)}}, "there are no types"),
    ],
)
def test_what_has_no_meaning_is_refused_when_it_is_loaded(changes: dict[str, object], message: str) -> None:
    stating = with_derived_types(linear())
    main = replace(stating.functions["main"], **changes.pop("main", {}))  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match="E0306") as caught:
        _ = replace(stating, functions={"main": main}, **changes).validated  # type: ignore[arg-type]
    assert message in caught.value.message
