"""A tiny program that calls functions with a kind: `y = scaled(x)`, and `z = scaled_backward(y)`."""

from __future__ import annotations

from dataclasses import replace

from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.program import Manifest, Program
from stretto.runtime.program.records import Function, Input, Instruction, Kind, Output, SlotType

S = Slot
F32 = "float32"


def step(op: str, *args: object, out: tuple[int, ...], free: tuple[int, ...] = ()) -> Instruction:
    """One instruction."""
    return Instruction(op, args, {}, out, free)


def kind_program() -> Program:
    """y = 2 x + 1, whose body keeps a second tensor of x's size alive; z = 3 y."""
    scaled = Function(
        3, (0,), (2,),
        (
            step("aten.mul.Scalar", S(0), 2.0, out=(1,)),
            step("aten.add.Scalar", S(1), 1.0, out=(2,), free=(0, 1)),
        ),
        types=(0, 0, 0), kind=Kind("scaled", ("x",), ("y",), {"factor": 2.0}),
    )  # fmt: skip
    backward = Function(
        2, (0,), (1,), (step("aten.mul.Scalar", S(0), 3.0, out=(1,), free=(0,)),),
        types=(0, 0), kind=Kind("scaled_backward", ("grad",), ("grad_x",)),
    )  # fmt: skip
    main = Function(
        3, (0,), (1, 2), (
            step("call", "scaled", [S(0)], out=(1,)),
            step("call", "scaled_backward", [S(1)], out=(2,)),
        ),
        types=(0, 0, 0),
    )  # fmt: skip
    return Program(
        Manifest("infer", F32, (("tp", 1),)),
        (Input("x", "input", (2, 3), F32, 0, index=0),),
        (Output("y", "output", (2, 3), F32, 1, index=0), Output("z", "output", (2, 3), F32, 2, index=1)),
        {"main": main, "scaled": scaled, "scaled_backward": backward},
        types=(SlotType(F32, (2, 3)),),
    )


def with_function(program: Program, name: str, **changes: object) -> Program:
    """The program with another function."""
    function = replace(program.functions[name], **changes)  # type: ignore[arg-type]
    return replace(program, functions={**program.functions, name: function})
