"""A function with a kind is compared with the formula of that idiom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stretto.driver.check.stated_kinds import wrong_kind
from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.program import Manifest, Program
from stretto.runtime.program.records import Function, Input, Instruction, Kind, Output, SlotType

F32 = "float32"
RIGHT = Kind("linear", ("x", "weight"), ("result",))


def linear(kind: Kind, op: str = "aten.mm.default") -> Program:
    """x @ weight in a function that says `kind`."""
    types = (SlotType(F32, (3, 3)),)
    body = Function(3, (0, 1), (2,), (Instruction(op, (Slot(0), Slot(1)), {}, (2,)),), types=(0, 0, 0), kind=kind)
    call = Instruction("call", ("f", [Slot(0), Slot(1)]), {}, (2,))
    inputs = tuple(Input(name, "input", (3, 3), F32, slot, index=slot) for slot, name in enumerate("xw"))
    main = Function(3, (0, 1), (2,), (call,), types=(0, 0, 0))
    outputs = (Output("y", "output", (3, 3), F32, 2, index=0),)
    return Program(Manifest("infer", F32, (("tp", 1),)), inputs, outputs, {"main": main, "f": body}, types=types)


def test_a_body_that_is_what_its_kind_says_is_right() -> None:
    assert linear(RIGHT).validated and wrong_kind(linear(RIGHT)) == ""


def test_a_kind_without_a_formula_means_what_its_body_computes() -> None:
    assert wrong_kind(linear(replace(RIGHT, name="region"), "aten.add.Tensor")) == ""


@pytest.mark.parametrize(
    ("kind", "op", "problem"),
    [
        (RIGHT, "aten.add.Tensor", 'its body gives another "result"'),
        (replace(RIGHT, operands=("weight", "x")), "aten.mm.default", 'its body gives another "result"'),
        (replace(RIGHT, operands=("x", "bias")), "aten.mm.default", 'is not given its "weight"'),
        (replace(RIGHT, attributes={"scale": 2.0}), "aten.mm.default", 'has no "scale"'),
        (replace(RIGHT, results=("y",)), "aten.mm.default", "gives result, not y"),
    ],
)
def test_a_body_that_is_another_is_named(kind: Kind, op: str, problem: str) -> None:
    assert wrong_kind(linear(kind, op)) == f'function "f" is said to be linear, but {problem}'
