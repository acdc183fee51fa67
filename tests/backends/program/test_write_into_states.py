"""States are written in place where one lane runs all; a program that names lanes keeps both values."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stretto.backends.program.write_into_states import write_into_states
from stretto.runtime.program.program import Manifest, Program
from stretto.runtime.program.records import Function, Input, Output
from stretto.runtime.prover import prove, with_derived_types

from ...runtime.prover.programs import PAIR, PLACES, S, step


@pytest.mark.parametrize(("lane", "into"), [("", 0), ("aux", None)])
def test_a_program_that_names_lanes_writes_no_state_in_place(lane: str, into: int | None) -> None:
    read = replace(step("aten.exp.default", S(0), out=[3], loc=0), lane=lane)
    new = step("aten.index_copy.default", S(0), 0, S(1), S(2), out=[4], loc=1)
    inputs = (
        Input("cache", "state", (4, 4), "float32", 0),
        Input("at", "input", (1,), "int64", 1, index=0),
        Input("rows", "input", (1, 4), "float32", 2, index=1),
    )
    outputs = (Output("cache", "state", (4, 4), "float32", 4), Output("y", "output", (4, 4), "float32", 3, index=0))
    functions = {"main": Function(5, (0, 1, 2), (4, 3), (read, new))}
    program = Program(Manifest("infer", "float32", PAIR), inputs, outputs, functions, PLACES)
    written = write_into_states(with_derived_types(program))
    assert [each.into for each in written.functions["main"].code] == [None, into]
    assert prove(written).safe


def test_a_state_that_is_written_before_a_call_and_in_it_is_written_in_place_twice() -> None:
    """As the length of a cache, which a step sets and each layer adds to."""
    one = Function(3, (0, 1), (2,), (step("aten.add.Tensor", S(0), S(1), out=[2]),))
    code = (
        step("aten.copy.default", S(0), S(1), out=[2], loc=0),
        step("call", "layer", [S(2), S(1)], out=[3], loc=1),
    )
    inputs = (Input("length", "state", (4,), "float32", 0), Input("at", "input", (4,), "float32", 1, index=0))
    outputs = (Output("length", "state", (4,), "float32", 3),)
    functions = {"main": Function(4, (0, 1), (3,), code), "layer": one}
    program = Program(Manifest("infer", "float32", PAIR), inputs, outputs, functions, PLACES)
    written = write_into_states(with_derived_types(program)).validated
    assert [each.into for each in written.functions["main"].code] == [0, None]
    assert [each.into for each in written.functions["layer"].code] == [0]
    assert prove(written).safe
