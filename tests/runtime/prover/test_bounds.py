"""The cost of a proof grows with distinct functions and contexts. Programs that would cost more are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from stretto.dsl import Plan, PlanError
from stretto.dsl.mesh import MAX_RANKS
from stretto.runtime.errors import ProgramError
from stretto.runtime.program.entries import entries
from stretto.runtime.program.limits import MOST_RANKS
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Function, Instruction
from stretto.runtime.prover import prove
from stretto.runtime.prover.analysis import Analysis

from .programs import S, program, reduce, relu, step, wait

LIMIT = 64


def call(name: str, slot: int, out: int) -> Instruction:
    return step("call", name, [S(slot)], out=[out])


def chained(levels: int, width: int, *last: Instruction, result: int = 1) -> Program:
    """Functions f0, f1, ..: each calls the next one `width` times in a row; the last has the instructions `last`."""
    names = [f"f{level}" for level in range(levels)]
    functions = {names[-1]: Function(10, (0,), (result,), last or (relu(0, 1),))}
    for name, callee in pairwise(names):
        code = tuple(call(callee, slot, slot + 1) for slot in range(width))
        functions[name] = Function(width + 1, (0,), (width,), code)
    return program(call("f0", 0, 1), result=1, functions=functions)


def walked(one: Program) -> int:
    """The instructions that a proof of the only entry walks in functions."""
    analysis = Analysis(one.mesh)
    analysis.program(one.validated, entries(one.inputs, one.outputs, one.functions, None)[0])
    return analysis.walked


@pytest.mark.parametrize(("levels", "width"), [(26, 1), (50, 2), (12, 12)])
def test_a_chain_of_calls_is_walked_once_for_each_function_and_context(levels: int, width: int) -> None:
    """width ** levels calls; the argument of each function is kept by its caller or not, so two contexts at most."""
    one = chained(levels, width)
    instructions = sum(len(function.code) for name, function in one.functions.items() if name != "main")
    assert instructions <= walked(one) <= 2 * instructions
    assert prove(one).safe


def test_a_chain_with_communication_is_proved_and_its_events_are_counted() -> None:
    one = chained(4, 6, reduce(0, 2), wait(2, 1))
    verdict = prove(one)
    assert verdict.safe and verdict.collectives == 6**3
    assert walked(one) <= 2 * (3 * 6 + 2)


def test_a_fan_that_communicates_too_often_is_refused_before_its_events_are_listed() -> None:
    with pytest.raises(ProgramError, match="17,179,869,184 times in a step") as caught:
        prove(chained(12, 8, reduce(0, 2), wait(2, 1)))
    assert caught.value.code == "E0726"


def test_functions_of_exponentially_many_contexts_are_refused() -> None:
    """Function i calls the next one with its argument, and with 2^i rows more: each path gives another shape."""
    names = [f"f{level}" for level in range(26)]
    functions = {names[-1]: Function(2, (0,), (1,), (relu(0, 1),))}
    for level, (name, callee) in enumerate(pairwise(names)):
        rows = step("aten.constant_pad_nd.default", S(0), [0, 0, 0, 2**level], 0.0, out=[1])
        code = (rows, call(callee, 0, 2), call(callee, 1, 3))
        functions[name] = Function(4, (0,), (2,), code)
    with pytest.raises(ProgramError, match="too many different shapes and lifetimes") as caught:
        prove(program(call("f0", 0, 1), result=1, functions=functions))
    assert caught.value.code == "E0726"


@pytest.mark.parametrize("levels", [LIMIT, 1500])
def test_calls_that_are_nested_too_deep_are_refused(levels: int) -> None:
    assert prove(chained(LIMIT - 1, 1)).safe
    with pytest.raises(ProgramError, match=r"nested more than 64 levels deep") as caught:
        prove(chained(levels, 1))
    assert caught.value.code == "E0306"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mesh": (("tp", 10**9),)}, "1000000000 ranks, expected at most 131072"),
        ({"mesh": tuple((f"a{axis}", 10**9) for axis in range(9))}, "more than 10^20 ranks"),
        ({"mesh": tuple((f"a{axis}", 1) for axis in range(99))}, "expected at most 16 axes"),
        ({"shape": (10**12, 10**12)}, "input 'x' has more than 2^60 bytes"),
        ({"shape": (10**400,)}, "input 'x' has more than 2^60 bytes"),
    ],
)
def test_a_program_of_absurd_size_is_refused(change: dict[str, object], message: str) -> None:
    one = program(relu(0, 1), result=1, **change)  # type: ignore[arg-type]
    with pytest.raises(ProgramError) as caught:
        _ = one.validated
    assert caught.value.code == "E0306" and message in caught.value.message


def test_a_plan_is_refused_that_no_program_could_be_made_of() -> None:
    assert MAX_RANKS == MOST_RANKS
    assert Plan.parse("mesh (dp=1024, tp=128)").mesh.size == MOST_RANKS
    for text in ("mesh (dp=1000000000)", "mesh (dp=1024, tp=256)"):
        with pytest.raises(PlanError, match="131072") as caught:
            Plan.parse(text)
        assert caught.value.code == "E0108"


def test_a_giant_tensor_is_proved_without_memory_for_it() -> None:
    one = program(relu(0, 1), result=1, shape=(10**6, 10**6))
    assert prove(one).peak_bytes == 8 * 10**12
    huge = step("aten.expand.default", S(0), [10**9, 10**9, 4, 4], out=[1])
    copied = program(huge, step("aten.clone.default", S(1), out=[2]), relu(0, 3), result=3)
    assert not prove(copied).safe


def test_a_function_of_absurdly_many_slots_is_refused() -> None:
    one = program(relu(0, 1), result=1)
    wide = replace(one, functions={"main": replace(one.functions["main"], slots=10**12)})
    with pytest.raises(ProgramError, match="slots: expected at most"):
        _ = wide.validated
