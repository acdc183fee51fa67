"""The interpreter of programs, on programs written by hand: what it computes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from stretto.backends.interpreter import ProgramRecords, run_program
from stretto.diagnostics import StrettoError
from stretto.ir.interpreter.errors import DeadlockError
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Instruction
from torch import Tensor

from ...runtime.pipe_program import Pipe
from ...runtime.tiny_programs import S, data_parallel, infer, linear, step

Inputs = Mapping[tuple[str, str], Tensor]


def records(program: Program) -> ProgramRecords:
    return ProgramRecords(
        program.manifest.mesh,
        program.inputs,
        program.outputs,
        program.functions,
        program.locations,
        program.pipeline,
    )


def results(program: Program, inputs: Inputs) -> dict[tuple[str, str], Tensor]:
    names = [(output.kind, output.name) for output in program.outputs]
    return dict(zip(names, run_program(records(program), inputs), strict=True))


def edited(program: Program, change: Callable[[list[Instruction]], None], function: str = "main") -> Program:
    """The program with other instructions in a function; its backward begins at the same instruction."""
    before = program.functions[function]
    code, split = list(before.code), before.backward_at
    change(code)
    if split is not None:
        split = next(i for i, instruction in enumerate(code) if instruction is before.code[before.backward_at or 0])
    other = replace(before, code=tuple(code), backward_at=split)
    return replace(program, functions={**program.functions, function: other})


def linear_inputs() -> dict[tuple[str, str], Tensor]:
    return {
        ("parameter", "w"): torch.randn(4, 3, dtype=torch.float64),
        ("input", "x"): torch.randn(5, 4, dtype=torch.float64),
        ("tangent", "loss"): torch.tensor(-1.75, dtype=torch.float64),
    }


def test_a_program_gives_what_its_formula_says_for_any_tangent() -> None:
    inputs = linear_inputs()
    weight, x, tangent = (inputs[key] for key in inputs)
    found = results(linear(), inputs)
    product = x @ weight
    torch.testing.assert_close(found["output", "loss"], product.pow(2).sum())
    torch.testing.assert_close(found["output", "y"], product)
    torch.testing.assert_close(found["gradient", "w"], x.t() @ (2 * product) * tangent)


def test_float32_programs_run_in_float64() -> None:
    assert results(linear(), linear_inputs())["output", "loss"].dtype == torch.float64


def test_gradients_that_are_left_to_the_caller_to_reduce_are_summed() -> None:
    unreduced = data_parallel(reduced=False)
    outputs = tuple(replace(o, unreduced_over=("dp",)) if o.kind == "gradient" else o for o in unreduced.outputs)
    inputs = {
        ("parameter", "w"): torch.randn(3, 3),
        ("input", "x"): torch.randn(4, 3),
        ("tangent", "loss"): torch.tensor(2.0),
        ("buffer", "count"): torch.tensor(5.0),
    }
    found = results(replace(unreduced, outputs=outputs), inputs)
    reduced = results(data_parallel(), inputs)
    assert found.keys() == reduced.keys()
    for key, value in reduced.items():
        torch.testing.assert_close(found[key], value)
    assert found["buffer", "count"] == 6


def test_replicas_that_differ_are_refused() -> None:
    inputs = {
        ("parameter", "w"): torch.randn(3, 3),
        ("input", "x"): torch.randn(4, 3),
        ("tangent", "loss"): torch.tensor(2.0),
        ("buffer", "count"): torch.tensor(5.0),
    }
    with pytest.raises(StrettoError, match=r"ranks 0 and 1 should hold the same of result .gradient w.") as error:
        results(data_parallel(reduced=False), inputs)
    assert error.value.code == "E0659"


def drop_free(code: list[Instruction]) -> None:
    code[1] = replace(code[1], free=(2,))


def wrong_split(code: list[Instruction]) -> None:
    code.insert(0, step("aten.neg.default", S(8), out=[9]))


def never_waits(code: list[Instruction]) -> None:
    code[3] = step("aten.clone.default", S(3), out=[5])
    code[2] = replace(code[2], free=())


def waits_twice(code: list[Instruction]) -> None:
    code[3] = replace(code[3], free=())
    code.insert(4, step("comm.wait", S(4), out=[6]))


def reads_a_future(code: list[Instruction]) -> None:
    code[3] = step("aten.clone.default", S(4), out=[5])


def other_shape(code: list[Instruction]) -> None:
    code[9] = step("aten.mm.default", S(10), S(10), out=[12])


def gives_the_transpose(code: list[Instruction]) -> None:
    code.append(step("aten.t.default", S(12), out=[12]))


def frees_twice(code: list[Instruction]) -> None:
    code[5] = replace(code[5], free=(6, 3))


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (drop_free, "E0664", 'instruction 8 of "main", "aten.t.default".*reads slot 2, which is not set'),
        (frees_twice, "E0664", 'instruction 5 of "main".*frees slot 3, which is not set'),
        (wrong_split, "E0664", "reads slot 8, which is not set"),
        (never_waits, "E0658", 'rank . never waits for instruction 2 of "main"'),
        (waits_twice, "E0658", "waits twice"),
        (reads_a_future, "E0658", "takes a future that was not waited on"),
        (other_shape, "E0653", 'instruction 9 of "main", "aten.mm.default".*fails'),
        (
            gives_the_transpose,
            "E0654",
            r"returns torch.float64 \(3, 2\) as gradient w, but the program says .*\(2, 3\)",
        ),
    ],
)
def test_a_program_that_cannot_run_is_refused_with_its_instruction(
    change: Callable[[list[Instruction]], None], code: str, words: str
) -> None:
    with pytest.raises(StrettoError, match=words) as error:
        results(edited(linear(), change), linear_inputs())
    assert error.value.code == code


def scales_by_its_coordinate(code: list[Instruction]) -> None:
    code[2] = replace(code[2], args=(S(13),))
    code.insert(2, step("rank.offset", axes=["tp"], chunk=1, out=[14]))
    code.insert(3, step("aten.mul.Tensor", S(3), S(14), out=[13]))


def test_a_rank_reads_its_own_coordinate() -> None:
    inputs = linear_inputs()
    program = edited(linear(), scales_by_its_coordinate)
    weight, x = inputs["parameter", "w"], inputs["input", "x"]
    torch.testing.assert_close(results(program, inputs)["output", "y"], x[:, 2:] @ weight[2:])


def test_padding_is_nan_until_it_is_masked() -> None:
    code = (
        step("rank.shard", S(0), axes=["tp"], dim=0, chunk=2, out=[1]),
        step("aten.sum.default", S(1), out=[2]),
        step("rank.mask", S(1), axes=["tp"], dim=0, chunk=2, extent=3, fill=0.0, out=[3]),
        step("aten.sum.default", S(3), out=[4]),
        step("comm.all_reduce_start", S(2), axes=["tp"], reduce="sum", out=[5]),
        step("comm.wait", S(5), out=[6]),
        step("comm.all_reduce_start", S(4), axes=["tp"], reduce="sum", out=[7]),
        step("comm.wait", S(7), out=[8]),
    )
    program = infer(code, [(3,)], [6, 8], (("tp", 2),))
    leaked, masked = run_program(records(program), {("input", "x0"): torch.tensor([1.0, 2.0, 4.0])})
    assert leaked.isnan() and masked == 7


def test_a_wait_for_what_nobody_sends_is_a_deadlock_with_its_ranks() -> None:
    code = (
        step("comm.receive_start", axis="tp", peer=1, size=[2], dtype=torch.float32, out=[1]),
        step("comm.wait", S(1), out=[2]),
    )
    program = infer(code, [(2,)], [2], (("tp", 2),))
    with pytest.raises(DeadlockError) as error:
        run_program(records(program), {("input", "x0"): torch.zeros(2)})
    assert error.value.code == "E0657" and [stuck.rank for stuck in error.value.stuck] == [0, 1]


def test_a_message_that_nobody_receives_is_refused() -> None:
    program = infer((step("comm.send", S(0), axis="tp", peer=1),), [(2,)], [0], (("tp", 2),))
    with pytest.raises(StrettoError, match="never receives") as error:
        run_program(records(program), {("input", "x0"): torch.zeros(2)})
    assert error.value.code == "E0663"


def test_collectives_of_other_shapes_on_two_ranks_are_a_mismatch() -> None:
    code = (
        step("rank.offset", axes=["tp"], chunk=1, out=[1]),
        step("aten.eq.Scalar", S(1), 0, out=[2]),
        step("aten.expand.default", S(2), [2], out=[3]),
        step("aten.index.Tensor", S(0), [S(3)], out=[4]),
        step("comm.all_reduce_start", S(4), axes=["tp"], reduce="sum", out=[5]),
        step("comm.wait", S(5), out=[6]),
    )
    with pytest.raises(DeadlockError, match="start a collective differently") as error:
        run_program(records(infer(code, [(2,)], [6], (("tp", 2),))), {("input", "x0"): torch.ones(2)})
    assert error.value.code == "E0656"


def test_an_input_of_another_shape_is_refused() -> None:
    with pytest.raises(StrettoError, match='input "input x" is') as error:
        results(linear(), linear_inputs() | {("input", "x"): torch.zeros(5, 3)})
    assert error.value.code == "E0651"


def pipe_inputs() -> dict[tuple[str, str], Tensor]:
    return {
        ("parameter", "a"): torch.randn(3, 4, dtype=torch.float64),
        ("parameter", "b"): torch.randn(4, 2, dtype=torch.float64),
        ("input", "x"): torch.randn(8, 3, dtype=torch.float64),
        ("buffer", "seen"): torch.zeros(1, dtype=torch.float64),
        ("tangent", "loss"): torch.tensor(-0.5, dtype=torch.float64),
    }


@pytest.mark.parametrize("dp", [1, 2])
@pytest.mark.parametrize("reduced", [True, False])
def test_a_pipeline_gives_loss_and_gradients_for_any_tangent(dp: int, reduced: bool) -> None:
    inputs = pipe_inputs()
    a, b, x = (inputs[key].clone().requires_grad_() for key in list(inputs)[:3])
    loss = (x @ a @ b).pow(2).sum()
    (loss * -0.5).backward()
    found = results(Pipe(dp=dp, reduced=reduced).train(), inputs)
    torch.testing.assert_close(found["output", "loss"], loss.detach())
    torch.testing.assert_close(found["gradient", "a"], a.grad)
    torch.testing.assert_close(found["gradient", "b"], b.grad)


def other_peer(code: list[Instruction]) -> None:
    index = next(i for i, instruction in enumerate(code) if instruction.op == "comm.receive_start")
    code[index] = replace(code[index], kwargs={**code[index].kwargs, "peer": 1})


def test_a_receive_from_another_peer_waits_for_ever() -> None:
    with pytest.raises(DeadlockError) as error:
        results(edited(Pipe().train(), other_peer, "main_1"), pipe_inputs())
    assert error.value.code == "E0657"


def test_a_call_for_another_microbatch_gives_other_values() -> None:
    def same_microbatch(code: list[Instruction]) -> None:
        for index, instruction in enumerate(code):
            if instruction.op == "call":
                code[index] = replace(instruction, kwargs={"microbatch": 0})

    right = results(Pipe().train(), pipe_inputs())
    wrong = results(edited(Pipe().train(), same_microbatch, "main_0"), pipe_inputs())
    assert not torch.allclose(right["output", "loss"], wrong["output", "loss"])
