"""Faults of lowering and of programs are seen: the program is interpreted on all ranks and compared with its module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from stretto.backends.interpreter import ProgramRecords
from stretto.backends.program import lower_program
from stretto.diagnostics import StrettoError
from stretto.driver.check.lowered_code import other_constants
from stretto.driver.check.lowering_check import can_be_lowered, compare_with_module, records_of, records_of_program
from stretto.driver.check.pass_check import Breakage, CheckOptions, PassChecker
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest, Observer
from stretto.dsl.plan import Plan
from stretto.ir.equivalence.compare import Comparison
from stretto.ir.equivalence.random_inputs import infer_ranges
from stretto.ir.module import Module
from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Function, Instruction
from torch import Tensor, nn


class Net(nn.Module):
    """Two layers; dropout draws, and the loss is a mean over rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(6, 8), nn.Linear(8, 6), nn.Dropout(0.25)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.down(self.drop(torch.tanh(self.up(x)))) - y).pow(2).mean()


SHARDED = 'mesh (dp=2, tp=2)\nshard "up" columns over tp\nshard "down" rows over tp\n'
UNEVEN = 'mesh (tp=3)\nshard "up" columns over tp\nshard "down" rows over tp\n'


@cache
def compiled(plan: str) -> tuple[Program, str, tuple[str, ...]]:
    """The program, the text of its module, and those of the modules before the last pass."""
    texts: list[str] = []
    net = Net().double()
    inputs = {name: torch.randn(8, 6).double() for name in "xy"}
    request = CompileRequest.of(net, (), inputs, Plan.parse(plan))
    program = compile_program(request, Observer(module=lambda name, module: texts.append(module.text()))).program
    return program, program.ir, tuple(texts[:-1])


def comparison(program: ProgramRecords, text: str) -> Comparison:
    module = Module.parse(text)
    return compare_with_module(module, program, 0, infer_ranges(module), 1e-9, None)


PLANS = [SHARDED, UNEVEN, "mesh (pp=2, dp=2)\npipeline over pp { schedule 1f1b  microbatches 2 }\n"]


@pytest.mark.parametrize("plan", PLANS)
def test_a_compiled_program_computes_what_its_module_does(plan: str) -> None:
    program, text, earlier = compiled(plan)
    assert comparison(records_of_program(program), text).is_equal
    assert comparison(records_of(Module.parse(text)), text).is_equal
    assert not can_be_lowered(Module.parse(earlier[0]))


def altered(program: Program, name: str, change: Callable[[Instruction], Instruction | None]) -> Program:
    """The program with the first instruction that `change` gives another one for."""
    function = program.functions[name]
    for index, instruction in enumerate(function.code):
        other = change(instruction)
        if other is not None:
            code = (*function.code[:index], other, *function.code[index + 1 :])
            return with_function(program, name, replace(function, code=code))
    raise AssertionError(f"{name} has no place for the fault")


def with_function(program: Program, name: str, function: Function) -> Program:
    return replace(program, functions={**program.functions, name: function})


def swapped_operands(c: Instruction) -> Instruction | None:
    return replace(c, args=(c.args[1], c.args[0])) if c.op == "aten.sub.Tensor" else None


def other_constant(c: Instruction) -> Instruction | None:
    wrong = 2 * c.args[1] if c.op == "aten.mul.Scalar" and isinstance(c.args[1], float) else None
    return None if wrong is None else replace(c, args=(c.args[0], wrong))


def other_mask(c: Instruction) -> Instruction | None:
    return replace(c, kwargs={**c.kwargs, "below": 1 << 31}) if c.op == "rank.random" else None


def same_draws_on_all_ranks(c: Instruction) -> Instruction | None:
    if c.op != "rank.random":
        return None
    sizes = c.kwargs["chunks"]
    return replace(c, kwargs={**c.kwargs, "size": sizes, "axes": [""] * len(sizes)})  # type: ignore[arg-type]


def no_reduction(c: Instruction) -> Instruction | None:
    is_sum = c.op == "comm.all_reduce_start" and c.kwargs["reduce"] == "sum"
    return replace(c, kwargs={**c.kwargs, "reduce": "max"}) if is_sum else None


def left_out(c: Instruction) -> Instruction | None:
    return Instruction("aten.alias.default", c.args, {}, c.out, c.free, c.loc) if c.op == "aten.tanh.default" else None


@pytest.mark.parametrize(
    "fault", [swapped_operands, other_constant, other_mask, same_draws_on_all_ranks, no_reduction, left_out]
)
def test_a_fault_of_a_program_is_seen(fault: Callable[[Instruction], Instruction | None]) -> None:
    program, text, _ = compiled(SHARDED)
    faulty = records_of_program(altered(program, "main", fault))
    try:
        found = comparison(faulty, text)
    except StrettoError as error:
        assert error.code == "E0659"
    else:
        assert not found.is_equal


def test_a_gradient_that_loses_the_tangent_is_seen() -> None:
    program, text, _ = compiled(SHARDED)
    main = program.functions["main"]
    [tangent] = [each.slot for each in program.inputs if each.kind == "tangent"]
    ones = Instruction("aten.full_like.default", (Slot(tangent), 1.0), {}, (main.slots,))
    at = main.backward_at
    assert at is not None
    rest = [replace(c, args=_instead(c.args, tangent, main.slots)) for c in main.code[at:]]
    code = (*main.code[:at], ones, *rest)
    lost = with_function(program, "main", replace(main, code=code, slots=main.slots + 1, types=(), views=()))
    differing = [r.name for r in comparison(records_of_program(lost), text).results if str(r.verdict) == "different"]
    assert len(differing) == 4


def _instead(args: tuple[object, ...], old: int, new: int) -> tuple[object, ...]:
    return tuple(Slot(new) if value == Slot(old) else value for value in args)


def test_outputs_that_change_places_are_seen() -> None:
    program, text, _ = compiled(SHARDED)
    up, down = (next(o for o in program.outputs if o.name == name) for name in ("up.weight", "down.weight"))
    assert up.shape != down.shape
    outputs = tuple(
        replace(o, slot=down.slot) if o is up else replace(o, slot=up.slot) if o is down else o for o in program.outputs
    )
    with pytest.raises(StrettoError) as error:
        comparison(records_of_program(replace(program, outputs=outputs)), text)
    assert error.value.code == "E0654"


def test_a_result_that_is_left_out_is_seen() -> None:
    program, text, _ = compiled(SHARDED)
    outputs = tuple(o for o in program.outputs if o.name != "up.bias")
    with pytest.raises(StrettoError, match=r"gradient up\.bias is missing") as error:
        comparison(records_of_program(replace(program, outputs=outputs)), text)
    assert error.value.code == "E0660"


@pytest.mark.parametrize("plan", PLANS)
def test_a_constant_that_the_module_does_not_have_is_named_whatever_it_computes(plan: str) -> None:
    program, text, _ = compiled(plan)
    module = Module.parse(text)
    assert other_constants(module, records_of_program(program)) == ""
    places = [(name, index) for name, function in program.functions.items() for index in range(len(function.code))]
    seen = set()
    for name, index in places:
        instruction = program.functions[name].code[index]
        for key, value in instruction.kwargs.items():
            if type(value) in (int, float) and (instruction.op, key) not in seen and key != "microbatch_index":
                seen.add((instruction.op, key))
                other = replace(instruction, kwargs={**instruction.kwargs, key: value + 1})
                function = program.functions[name]
                code = (*function.code[:index], other, *function.code[index + 1 :])
                wrong = records_of_program_unchecked(with_function(program, name, replace(function, code=code)))
                assert f'instruction {index} of "{name}" is "{instruction.op}"' in other_constants(module, wrong)
    assert seen


def records_of_program_unchecked(program: Program) -> ProgramRecords:
    """The records of a program that may not be valid."""
    return ProgramRecords(
        program.manifest.mesh, program.inputs, program.outputs, program.functions, program.locations, program.pipeline
    )


def test_a_lost_fill_that_no_value_shows_is_a_fault_of_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    class Peak(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(6, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x).square().amax(-1).sum()  # never below 0, with which a lost fill would pad

    plan = Plan.parse('mesh (tp=2)\nshard "up" columns over tp\n')
    request = CompileRequest.of(Peak().double(), (), {"x": torch.randn(8, 6).double()}, plan)
    text = compile_program(request).program.ir
    lowered = PassChecker(Module.parse(text), CheckOptions()).lowered()
    assert lowered is not None and lowered.equal
    right = lower_program._Body._arguments

    def without_fill(self: object, call: object) -> tuple[tuple[object, ...], dict[str, object]]:
        args, kwargs = right(self, call)  # type: ignore[arg-type]
        return args, {**kwargs, "fill": 0.0} if "fill" in kwargs else kwargs

    monkeypatch.setattr(lower_program._Body, "_arguments", without_fill)
    wrong = PassChecker(Module.parse(text), CheckOptions()).lowered()
    assert wrong is not None and not wrong.differing
    assert wrong.breakage is Breakage.VALUES and "fill = 0.0" in wrong.lines[0]
