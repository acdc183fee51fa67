"""States are written in place: nothing reads an old value, on any lane, in any function, in a view or a future."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from stretto.runtime.program.program import Manifest, Program
from stretto.runtime.program.records import Function, Input, Instruction, Output
from stretto.runtime.prover import prove
from stretto.runtime.threads.session import RankThreads

from .programs import PAIR, PLACES, S, reduce, step, wait


def write(slot: int, out: int, lane: str = "") -> Instruction:
    """A new value of a state in its memory: that in slot `slot`, plus the input in slot 1."""
    return replace(step("aten.add.Tensor", S(slot), S(1), out=[out], loc=0), into=slot, lane=lane)


def stateful(*code: Instruction, result: int, new: int, functions: dict[str, Function] | None = None) -> Program:
    """Instructions on a state in slot 0 and an input in slot 1."""
    main = Function(12, (0, 1), (result, new), code)
    inputs = (Input("s", "state", (4, 4), "float32", 0), Input("x", "input", (4, 4), "float32", 1, index=0))
    outputs = (
        Output("y", "output", (4, 4), "float32", result, index=0), Output("s", "state", (4, 4), "float32", new),
    )  # fmt: skip
    return Program(Manifest("infer", "float32", PAIR), inputs, outputs, {"main": main, **(functions or {})}, PLACES)


def read(slot: int, out: int, op: str = "aten.neg.default", lane: str = "", **kw: object) -> Instruction:
    """Any op from one slot to another."""
    return replace(step(op, S(slot), out=[out], loc=1, **kw), lane=lane)  # type: ignore[arg-type]


def calling(op: str) -> dict[str, Function]:
    """A function that returns what an op makes of its first argument, and a new value in its memory."""
    return {"f": Function(4, (0, 1), (2, 3), (read(0, 2, op), write(0, 3)))}


CALL = step("call", "f", [S(0), S(1)], out=[2, 3], loc=0)
SHARD = read(0, 2, "rank.shard", axes=["tp"], dim=0, chunk=2)


def test_reads_before_the_write_and_of_the_new_value_are_safe() -> None:
    one = stateful(read(0, 2), write(0, 3), read(3, 4), step("aten.add.Tensor", S(2), S(4), out=[5]), result=5, new=3)
    assert prove(one).safe
    assert prove(stateful(CALL, read(3, 4), result=4, new=3, functions=calling("aten.neg.default"))).safe
    state, x = torch.ones(4, 4), torch.full((4, 4), 2.0)
    with RankThreads(one) as session:
        (y,), _ = session.forward([], [], [x], states=[state])
    torch.testing.assert_close(y, torch.full((4, 4), -4.0))
    torch.testing.assert_close(state, torch.full((4, 4), 3.0))


@pytest.mark.parametrize(
    ("code", "code_of_error"),
    [
        ([write(0, 3), read(0, 2)], "E0731"),
        ([read(0, 2, "aten.t.default"), write(0, 3), read(2, 4)], "E0731"),
        ([SHARD, write(0, 3), read(2, 4), read(4, 5)], "E0731"),
        ([write(0, 3), write(3, 4), read(3, 5)], "E0731"),
        ([reduce(0, 2), write(0, 3), wait(2, 4)], "E0709"),
        ([write(0, 3), CALL], "E0731"),
        ([read(0, 2, lane="aux"), write(0, 3), step("aten.add.Tensor", S(2), S(3), out=[4])], "E0729"),
    ],
)
def test_a_read_of_an_old_value_is_refuted(code: Sequence[Instruction], code_of_error: str) -> None:
    last = [slot for each in code for slot in each.writes()][-1]
    new = next(each.out[0] for each in reversed(code) if each.into is not None)
    assert new is not None
    functions = {"f": Function(4, (0, 1), (2, 3), (read(0, 2), read(1, 3)))} if CALL in code else None
    verdict = prove(stateful(*code, result=last, new=new, functions=functions))
    assert verdict.counterexample is not None and verdict.counterexample.code == code_of_error, verdict.render()
    assert len(verdict.counterexample.places) == 2


@pytest.mark.parametrize("op", ["aten.t.default", "rank.shard"])
def test_a_view_that_a_function_returns_beside_the_new_value_is_old(op: str) -> None:
    functions = calling(op)
    if op == "rank.shard":
        body = functions["f"]
        functions["f"] = replace(body, code=(replace(SHARD, out=(2,)), *body.code[1:]))
    verdict = prove(stateful(CALL, read(2, 4), read(3, 5), result=5, new=3, functions=functions))
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0731"
