"""A check passes what is right, fails what is wrong, and says what it could not judge."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from stretto.runtime import Program, RunError, Session, Verdict, check
from stretto.runtime.checks.comparing import compare, compare_short
from stretto.runtime.checks.model_and_program import AllRanks, SingleDevice
from stretto.runtime.checks.optimizer_drift import Drift
from stretto.runtime.checks.random_values import parameter, user_input
from stretto.runtime.checks.recording import Recording
from stretto.runtime.checks.report import RAISED, CheckReport, CheckRow
from stretto.runtime.checks.steps import run_steps
from stretto.runtime.program.arguments import Json
from stretto.runtime.program.records import Instruction
from stretto.runtime.program.reference import Promote, run_reference
from stretto.runtime.program.reference_records import Reference
from stretto.runtime.threads.session import RankThreads
from torch import Tensor

from ..prover import programs as tiny
from ..tiny_programs import F32, S, data_parallel, linear, step


def changed(program: Program, index: int, instruction: Instruction) -> Program:
    """The program with another instruction at `index` of main."""
    main = program.functions["main"]
    code = (*main.code[:index], instruction, *main.code[index + 1 :])
    return replace(program, functions={"main": replace(main, code=code)})


def verdicts(report: CheckReport) -> dict[tuple[str, str], Verdict]:
    return {(row.kind, row.name): row.verdict for row in report.rows}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("ranks", "width"), [(1, 4), (2, 4), (4, 6)])
def test_a_right_program_passes_in_outputs_gradients_and_trained_parameters(dtype: str, ranks: int, width: int) -> None:
    report = check(linear(ranks, dtype, width))
    assert report.passed
    kinds = [(row.kind, row.name) for row in report.rows if "halved" not in row.name]
    assert kinds == [("output", "loss"), ("output", "y"), ("gradient", "w"), ("parameter", "w")]
    halved = [(row.kind, row.name.removesuffix(" (parameters halved)")) for row in report.rows if "halved" in row.name]
    assert halved == kinds[:3]
    assert all(row.error <= (1e-6 if dtype == F32 else 1e-14) for row in report.rows)


def test_buffers_are_written_back_at_every_step_and_compared() -> None:
    report = check(data_parallel(), steps=3)
    assert report.passed
    assert verdicts(report)["buffer", "count"] is Verdict.EQUAL


def test_a_wrong_forward_fails_in_its_outputs() -> None:
    wrong = changed(linear(), 4, step("aten.pow.Tensor_Scalar", S(5), 2.001, out=[6]))
    by_row = verdicts(check(wrong))
    assert by_row["output", "loss"] is Verdict.DIFFERS
    assert by_row["output", "y"] is Verdict.EQUAL


def test_an_instruction_that_fails_is_a_row_that_names_the_program() -> None:
    fails = changed(linear(), 4, step("aten.mm.default", S(5), S(5), out=[6]))
    report = check(fails)
    [row] = [row for row in report.rows if row.kind == RAISED]
    assert not report.passed and row.name == "the program"
    assert "E0320" in row.note and "aten.mm.default" in row.note


def test_a_wrong_backward_fails_in_the_gradient_and_not_in_the_output() -> None:
    wrong = changed(linear(), 7, step("aten.mul.Scalar", S(9), 2.001, out=[10]))
    by_row = verdicts(check(wrong))
    assert by_row["output", "loss"] is Verdict.EQUAL
    assert by_row["gradient", "w"] is Verdict.DIFFERS
    assert not check(wrong).passed


def test_a_backward_that_loses_the_tangent_fails() -> None:
    lost = changed(linear(), 6, step("aten.clone.default", S(5), out=[9], free=[8]))
    assert verdicts(check(lost))["gradient", "w"] is Verdict.DIFFERS
    by_row = verdicts(check(changed(linear(), 6, step("aten.mul.Tensor", S(5), S(8), out=[9], free=[8]))))
    assert by_row["gradient", "w"] is Verdict.EQUAL


def test_a_rank_that_keeps_its_part_of_old_parameters_differs_once_they_are_changed() -> None:
    class Stale(AllRanks):
        """Computes with the parameters that it was called with first."""

        def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
            now = {name: value.detach().clone() for name, value in self.parameters.items()}
            self.first = getattr(self, "first", now)
            with torch.no_grad():
                for name, value in self.parameters.items():
                    value.copy_(self.first[name])
            outputs = super().forward(inputs)
            with torch.no_grad():
                for name, value in self.parameters.items():
                    value.data = now[name]
            return outputs

    by_row = verdicts(check(linear(2), side=Stale))
    assert by_row["output", "loss"] is by_row["gradient", "w"] is Verdict.EQUAL
    assert by_row["output", "loss (parameters halved)"] is Verdict.DIFFERS


def test_gradients_of_two_backwards_add_up() -> None:
    class Forgetful(AllRanks):
        """Clears the gradients before each forward."""

        def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
            for value in self.parameters.values():
                value.grad = None
            return super().forward(inputs)

    assert verdicts(check(linear(), side=Forgetful))["gradient", "w"] is Verdict.DIFFERS


def test_a_gradient_that_is_not_given_differs() -> None:
    program = linear()
    report = check(replace(program, outputs=program.outputs[:2]))
    assert verdicts(report)["gradient", "w"] is Verdict.DIFFERS
    assert verdicts(report)["parameter", "w"] is Verdict.DIFFERS


def test_a_missing_reduction_is_a_row_that_names_the_program() -> None:
    [row] = [row for row in check(data_parallel(reduced=False)).rows if row.kind == RAISED]
    assert row.name == "the program" and "should be the same on all replicas" in row.note


def test_the_session_may_be_another_and_is_closed() -> None:
    sessions: list[RankThreads] = []

    def ranks(program: Program) -> Session:
        sessions.append(RankThreads(program))
        return sessions[0]

    assert check(linear(), ranks=ranks, steps=1).passed
    with pytest.raises(RunError, match="stopped"):
        sessions[0].forward([torch.ones(4, 3)], [], [torch.ones(5, 4)])


def test_inference_compares_outputs_only() -> None:
    program = linear()
    main = program.functions["main"]
    inputs = tuple(replace(argument, requires_grad=False) for argument in program.inputs[:2])
    alone = replace(
        program,
        manifest=replace(program.manifest, mode="infer"),
        inputs=inputs,
        outputs=program.outputs[:2],
        functions={"main": replace(main, code=main.code[:6], arguments=(0, 1), backward_at=None)},
    )
    report = check(alone)
    assert report.passed
    assert report.steps == 0
    assert [row.kind for row in report.rows] == ["output"] * 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_program_in_a_short_dtype_may_err_a_few_times_as_much_as_eager_mode(dtype: str) -> None:
    report = check(linear(dtype=dtype))
    assert report.passed and report.tolerance is None
    assert report.criterion == f"within 4 times the error of eager {dtype} against float64"
    assert {row.verdict for row in report.rows} == {Verdict.EQUAL}


def test_a_wrong_backward_in_a_short_dtype_differs() -> None:
    wrong = changed(linear(dtype="bfloat16"), 7, step("aten.mul.Scalar", S(9), 2.2, out=[10]))
    report = check(wrong)
    assert verdicts(report)["gradient", "w"] is Verdict.DIFFERS and not report.passed
    assert "the error of eager mode is" in next(row.note for row in report.rows if row.name == "w")


def test_an_error_in_a_short_dtype_is_bounded_by_that_of_eager_mode() -> None:
    exact, eager = torch.tensor([1.0, 0.5]), torch.tensor([1.01, 0.5])
    for error, verdict in ((0.03, Verdict.EQUAL), (0.05, Verdict.DIFFERS)):
        assert compare_short("output", "y", exact, eager, exact + error, 2**-8).verdict is verdict
    lucky = compare_short("output", "y", exact, exact, exact + 2**-8, 2**-8)
    assert lucky.verdict is Verdict.EQUAL, "eager mode may be exact by chance"


def test_what_is_only_rounding_in_eager_mode_is_not_checked_but_bounded() -> None:
    exact, eager = torch.tensor([1e-17]), torch.tensor([1e-4])
    for value, verdict in ((1e-3, Verdict.NOT_CHECKED), (1e-2, Verdict.DIFFERS)):
        assert compare_short("gradient", "k.bias", exact, eager, torch.tensor([value]), 2**-8).verdict is verdict


def test_a_program_without_a_reference_cannot_be_checked() -> None:
    with pytest.raises(RunError) as caught:
        check(replace(linear(), reference=None))
    assert caught.value.code == "E0340"


def test_a_reference_that_takes_more_than_there_is_says_what() -> None:
    reference = linear().single_device
    assert reference is not None
    with pytest.raises(RunError) as caught:
        run_reference(reference, {}, [torch.ones(5, 4)])
    assert caught.value.code == "E0341"


def test_a_zero_reference_is_not_checked_and_alone_does_not_pass() -> None:
    row = compare("gradient", "w", torch.zeros(3), torch.zeros(3), 1e-4)
    assert (row.verdict, row.error) == (Verdict.NOT_CHECKED, 0.0)
    report = CheckReport((row,), F32, 3, 0)
    assert not report.passed and report.is_unjudged and report.to_json()["verdict"] == "not judged"


def test_a_value_where_the_reference_is_zero_differs_unless_it_is_rounding() -> None:
    value = torch.tensor([0.0, 2e-9, 0.0])
    assert compare("gradient", "w", torch.zeros(3), value, 1e-4).verdict is Verdict.DIFFERS
    assert compare("gradient", "w", torch.zeros(3), value, 1e-4, floor=1e-8).verdict is Verdict.NOT_CHECKED
    assert compare("gradient", "w", torch.zeros(3), value, 1e-4, change=1e-9).verdict is Verdict.NOT_CHECKED


def test_a_tensor_is_rounding_only_if_its_own_inputs_move_it_as_much() -> None:
    reference = torch.tensor([1e-9, -1e-9])
    near, far = torch.tensor([2e-9, 0.0]), torch.tensor([1e-7, 0.0])
    row = compare("gradient", "k.bias", reference, near, 1e-4, change=1e-9)
    assert row.verdict is Verdict.NOT_CHECKED and "rounding alone" in row.note
    assert compare("gradient", "k.bias", reference, far, 1e-4, change=1e-9).verdict is Verdict.DIFFERS
    assert compare("gradient", "k.bias", reference, near, 1e-4, change=1e-14).verdict is Verdict.DIFFERS


def test_an_error_just_above_the_tolerance_is_rounding_where_inputs_move_the_tensor_nearly_as_much() -> None:
    reference, value = torch.tensor([3.5e-3]), torch.tensor([3.5e-3 + 6.6e-7])  # a bias before a batch norm, measured
    assert compare("gradient", "b", reference, value, 1e-4, change=1.8e-7).verdict is Verdict.NOT_CHECKED
    assert compare("gradient", "b", reference, value, 1e-4, change=1e-8).verdict is Verdict.DIFFERS


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_fail_on_either_side(value: float) -> None:
    good, bad = torch.ones(2), torch.tensor([1.0, value])
    for reference, computed in ((good, bad), (bad, good), (bad, bad)):
        row = compare("output", "0", reference, computed, 1e-4)
        assert row.verdict is Verdict.DIFFERS
        assert "not finite" in row.note


def test_another_shape_fails() -> None:
    assert compare("output", "0", torch.ones(2), torch.ones(3), 1e-4).verdict is Verdict.DIFFERS


def test_a_report_is_one_json_object() -> None:
    rows = (CheckRow("output", "loss", math.inf, Verdict.DIFFERS, "bad"),)
    value: dict[str, Json] = json.loads(json.dumps(CheckReport(rows, F32, 3, 0).to_json(), allow_nan=False))
    assert value["passed"] is False and value["verdict"] == "differs"
    assert value["rows"] == [
        {"kind": "output", "name": "loss", "error": "inf", "verdict": "differs", "note": "bad"}
    ]  # fmt: skip


def test_adamw_may_amplify_the_rounding_of_tiny_gradients_only() -> None:
    reference = torch.ones(2)
    recording = Recording(parameters={"w": reference})
    recording.note({"w": torch.tensor([1.0, 1e-6])})
    drift = Drift(recording, 1)

    def judged(value: torch.Tensor) -> CheckRow:
        return drift.judge(compare("parameter", "w", reference, value, 1e-4), value, 1e-4, 1e-4)

    tiny = judged(reference + torch.tensor([0.0, 1e-3]))
    assert tiny.verdict is Verdict.EQUAL
    assert "1 of 2 elements" in tiny.note
    assert judged(reference + torch.tensor([1e-3, 0.0])).verdict is Verdict.DIFFERS
    assert judged(reference + torch.tensor([0.0, 1e-2])).verdict is Verdict.DIFFERS


def test_every_parameter_is_random_scales_and_biases_too() -> None:
    random = torch.Generator().manual_seed(0)
    scale = parameter("norm.weight", [64], "float32", random)
    assert 0.7 < float(scale.min()) < float(scale.max()) < 1.3
    assert float(scale.std()) > 0.05
    assert float(parameter("q.bias", [64], "float32", random).abs().min()) > 0
    assert 0.05 < float(parameter("q.weight", [64, 64], "float64", random).std()) < 0.1


def test_inputs_follow_what_the_program_says_of_them() -> None:
    random = torch.Generator().manual_seed(0)
    labels = user_input([8, 64], "int64", {"high": 50, "ignore_index": True}, random)
    assert int(labels.max()) > 40
    assert int(labels.min()) == -100
    assert len({tuple(row) for row in labels.tolist()}) == 8
    assert int((labels == -100).sum(1).float().std()) >= 0
    assert set(user_input([99], "int64", {}, random).tolist()) == {0, 1}
    assert user_input([99], "bool", {}, random).float().mean() > 0.5
    assert user_input([9], "float32", {}, random).dtype == torch.float32


def test_in_float64_every_floating_dtype_of_the_reference_is_raised() -> None:
    code = (
        step("aten.to.dtype", S(0), torch.bfloat16, out=[1]),
        step("aten.full.default", [1], 1 / 3, out=[2]),
        step("aten.mul.Tensor", S(1), S(2), out=[3], free=[1]),
        step("aten.arange.default", 3, out=[4]),
    )
    reference = Reference.from_json(
        {
            "inputs": [{"name": "x", "kind": "input", "aliases": [], "shape": [1], "dtype": F32, "index": 0}],
            "outputs": [{"index": 0, "slot": 3}, {"index": 1, "slot": 4}],
            "slots": 5,
            "code": [instruction.to_json() for instruction in code],
        }
    )
    x = torch.tensor([1 + 1e-12], dtype=torch.float64)
    (product, count), _ = run_reference(reference, {}, [x], Promote.FLOAT64)
    assert product.dtype == torch.float64
    assert product.item() == pytest.approx(x.item() / 3, rel=1e-15)
    assert count.dtype == torch.int64
    (product, _), _ = run_reference(reference, {}, [x.float()])
    assert product.dtype == torch.float32


def test_the_reference_leaves_what_it_is_given_alone() -> None:
    reference = data_parallel().single_device
    assert reference is not None
    count = torch.tensor(1.0)
    values = {("parameter", "w"): torch.ones(3, 3), ("buffer", "count"): count}
    _, buffers = run_reference(reference, values, [torch.ones(4, 3)])
    assert float(buffers["count"]) == 2.0
    assert float(count) == 1.0


def stated(program: Program, **changes: Json) -> Program:
    """The program whose reference states what is checked."""
    checks: dict[str, Json] = {
        "mode": "train", "dtype": F32, "trained": ["w"], "inputs_with_gradients": [], "differentiated": [0],
        "ranges": {}, **changes,
    }  # fmt: skip
    assert isinstance(program.reference, dict)
    return replace(program, reference={**program.reference, "stated": checks})


def test_a_reference_that_states_what_is_checked_passes_a_right_program() -> None:
    assert check(stated(linear())).passed


def test_who_is_trained_is_not_the_programs_word() -> None:
    right = stated(linear())
    inputs = tuple(replace(argument, requires_grad=False) for argument in right.inputs)
    untrained = replace(right, inputs=inputs, outputs=right.outputs[:2])
    assert verdicts(check(untrained))["gradient", "w"] is Verdict.DIFFERS


def test_the_dtype_that_is_judged_in_is_not_the_programs_word() -> None:
    wrong = stated(changed(linear(), 4, step("aten.pow.Tensor_Scalar", S(5), 2.001, out=[6])))
    other = replace(wrong, manifest=replace(wrong.manifest, dtype="bfloat16"))
    report = check(other)
    assert report.dtype == F32 and verdicts(report)["output", "loss"] is Verdict.DIFFERS


def test_an_output_that_the_program_leaves_out_fails() -> None:
    right = stated(linear())
    report = check(replace(right, outputs=(right.outputs[0], right.outputs[2])))
    assert [(row.kind, row.name, row.note) for row in report.rows] == [
        ("output", "1", "the program does not return it")
    ]
    assert not report.passed


def test_a_trained_parameter_that_the_program_does_not_take_fails() -> None:
    report = check(stated(linear(), trained=["w", "b"]))
    assert verdicts(report)["parameter", "b"] is Verdict.DIFFERS


def test_an_integer_input_of_unknown_range_is_asked_for() -> None:
    program = linear()
    integer = replace(program.inputs[1], dtype="int64")
    reference = program.reference
    assert isinstance(reference, dict)
    first, second = reference["inputs"]
    inputs = (program.inputs[0], integer, program.inputs[2])
    asking = replace(program, inputs=inputs, reference={**reference, "inputs": [first, {**second, "dtype": "int64"}]})
    with pytest.raises(RunError, match="values that integer input 'x' may take are unknown") as caught:
        check(asking)
    assert caught.value.code == "E0349" and "--range 'x=LO:HI'" in (caught.value.help or "")
    with pytest.raises(RunError, match='a range is given for "y", which is no input'):
        check(asking, ranges={"y": (0, 2)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mesh": (("tp", 8192),)}, "8192 ranks, too many for one machine"),
        ({"shape": (10**6, 10**6)}, "take 4,000,000,000,000 bytes, but the machine has"),
    ],
)
def test_a_program_beyond_this_machine_is_refused_before_memory_is_taken(
    change: dict[str, object], message: str
) -> None:
    one = tiny.program(tiny.relu(0, 1), result=1, **change)  # type: ignore[arg-type]
    with pytest.raises(RunError) as caught:
        run_steps(one, steps=1)
    assert caught.value.code == "E0344" and message in caught.value.message


def test_a_model_that_fails_on_one_device_leaves_nothing_to_compare_with() -> None:
    class Failing(SingleDevice):
        def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
            raise RuntimeError("modified by an inplace operation\nHint: none")

    with pytest.raises(RunError, match=r"E0345.*on one device.*modified by an inplace operation"):
        check(linear(), expected=Failing)
