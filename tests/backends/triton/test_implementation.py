"""The kernels as an implementation: what they take of a program for cuda, and the remark on what they decline."""

from dataclasses import replace

import pytest
from stretto.backends.triton.implementation import TRITON_KERNELS, RegionKernel
from stretto.driver.report.bound_kinds import bound_kinds, fallbacks
from stretto.runtime.implementations import registry
from stretto.runtime.implementations.binding import bindings
from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.program import Manifest, Program
from stretto.runtime.program.records import Function, Input, Instruction, Kind, Output, SlotType


def program() -> Program:
    """y = 2 x + 1 and y to the power of 0.3, each a region."""
    kind = Kind("region", ("in0",), ("out0",))
    pointwise = (
        Instruction("aten.mul.Scalar", (Slot(0), 2.0), {}, (1,)),
        Instruction("aten.add.Scalar", (Slot(1), 1.0), {}, (2,), (0, 1)),
    )
    power = (Instruction("aten.pow.Tensor_Scalar", (Slot(0), 0.3), {}, (1,), (0,)),)
    main = (
        Instruction("call", ("line", [Slot(0)]), {}, (1,)),
        Instruction("call", ("power", [Slot(1)]), {}, (2,)),
    )
    return Program(
        Manifest("infer", "float32", (("tp", 1),), target="cuda"),
        (Input("x", "input", (2, 3), "float32", 0, index=0),),
        (Output("y", "output", (2, 3), "float32", 1, index=0), Output("z", "output", (2, 3), "float32", 2, index=1)),
        {
            "main": Function(3, (0,), (1, 2), main, types=(0, 0, 0)),
            "line": Function(3, (0,), (2,), pointwise, types=(0, 0, 0), kind=kind),
            "power": Function(2, (0,), (1,), power, types=(0, 0), kind=kind),
        },
        types=(SlotType("float32", (2, 3)),),
    )


def test_a_region_that_no_kernel_computes_runs_as_its_body_and_a_remark_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", [TRITON_KERNELS])
    chosen = bindings(program().validated, "cuda")
    assert isinstance(chosen["line"].kernel, RegionKernel) and chosen["power"].kernel is None
    why = "no kernel computes aten.pow.Tensor_Scalar with (0.3,)"
    assert fallbacks(program()) == [
        "remark: on cuda 1 function of kind region runs as its body, op by op: "
        f"declined by Stretto's Triton kernels ({why})"
    ]
    assert [(each.runs, each.functions) for each in bound_kinds(program())] == [
        ("Stretto's Triton kernels", 1),
        ("", 1),
    ]
    on_the_cpu = replace(program(), manifest=replace(program().manifest, target="cpu"))
    assert [each.runs for each in bound_kinds(on_the_cpu)] == [""]
