"""Defects of one rank's program: futures, slots, shapes. Each is found, and named by its instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Function, Instruction
from stretto.runtime.prover import RankClass, Verdict, prove, prove_ranks

from .programs import S, layered, program, reduce, relu, step, wait

Spot = tuple[str, int]


def found(verdict: Verdict) -> tuple[str, list[Spot]]:
    """The code, and the instructions that the counterexample names."""
    assert verdict.counterexample is not None, verdict.render()
    places = verdict.counterexample.places
    return verdict.counterexample.code, [(place.function, place.index) for place in places]


def main(*indices: int) -> list[Spot]:
    return [("main", index) for index in indices]


def double(*code: Instruction, results: Sequence[int], arguments: Sequence[int] = (0,)) -> dict[str, Function]:
    """A callee named "body"."""
    return {"body": Function(10, tuple(arguments), tuple(results), code)}


def call(slots: Sequence[int], out: Sequence[int | None], free: Sequence[int] = ()) -> Instruction:
    return step("call", "body", [S(slot) for slot in slots], out=out, free=free, loc=0)


def test_a_wait_hidden_behind_an_op_is_safe() -> None:
    assert prove(program(reduce(0, 1), relu(0, 2), wait(1, 3), result=3)).safe


@pytest.mark.parametrize(
    ("one", "code", "places"),
    [
        pytest.param(program(reduce(0, 1), relu(0, 2), result=2), "E0706", main(0, 1), id="dropped wait"),
        pytest.param(program(reduce(0, 1, free=[1]), relu(0, 2), result=2), "E0705", main(0, 0), id="freed future"),
        pytest.param(program(reduce(0, 1), relu(0, 1), result=1), "E0705", main(1, 0), id="overwritten future"),
        pytest.param(program(reduce(0, None), relu(0, 1), result=1), "E0705", main(0, 0), id="no slot for a future"),
        pytest.param(
            program(reduce(0, 1), wait(1, 2, free=[]), wait(1, 3), result=3), "E0707", main(2, 1), id="double wait"
        ),
        pytest.param(program(reduce(0, 1), wait(1, 2), wait(1, 3), result=3), "E0707", main(2, 1), id="waited again"),
        pytest.param(program(wait(1, 2), reduce(0, 1), result=2), "E0701", main(0, 1), id="wait before start"),
        pytest.param(program(relu(0, 1), wait(1, 2), result=2), "E0708", main(1, 0), id="wait for a tensor"),
        pytest.param(program(reduce(0, 1), relu(1, 2), wait(1, 3), result=3), "E0708", main(1, 0), id="not waited on"),
        pytest.param(program(reduce(0, 1), result=1), "E0708", main(0), id="a future as result of the program"),
        pytest.param(program(relu(0, 1, free=[0]), relu(0, 2), result=2), "E0702", main(1, 0), id="freed too early"),
        pytest.param(program(relu(0, 1, free=[0]), relu(1, 2, free=[0]), result=2), "E0703", main(1, 0), id="frees"),
        pytest.param(program(relu(0, 1), relu(1, 2, free=[1]), result=1), "E0704", main(1, 0), id="freed result"),
        pytest.param(program(relu(2, 1), relu(0, 2), result=1), "E0701", main(0, 1), id="read before set"),
        pytest.param(
            program(relu(0, 1), reduce(1, 2), relu(0, 1), wait(2, 3), result=3), "E0709", main(2, 1), id="overwritten"
        ),
        pytest.param(
            program(relu(0, 1), reduce(1, 2, free=[1]), relu(0, 1), wait(2, 3), result=3),
            "E0709", main(2, 1), id="slot used again while the collective still reads it",
        ),
        pytest.param(
            program(relu(0, 1), reduce(1, 2), relu(0, 4, free=[1]), wait(2, 3), result=3),
            "E0709", main(2, 1), id="freed by a stranger",
        ),
        pytest.param(
            program(step("aten.mm.default", S(0), S(0), out=[1]), shape=(2, 3), result=1),
            "E0714", main(0), id="shapes that do not fit",
        ),
        pytest.param(
            program(step("comm.reduce_scatter_start", S(0), axes=["tp"], dim=1, reduce="sum", out=[1]),
                    wait(1, 2), shape=(4, 3), result=2),
            "E0714", main(0), id="a dim that the group does not divide",
        ),
        pytest.param(
            program(step("aten.sum.default", S(0), out=[1]), result=1), "E0716", main(0), id="a result of another shape"
        ),
    ],
)  # fmt: skip
def test_a_defect_is_found_and_named(one: Program, code: str, places: list[Spot]) -> None:
    assert found(prove(one)) == (code, places)


def test_the_last_user_of_an_operand_may_free_it_while_the_collective_runs() -> None:
    assert prove(program(relu(0, 1), reduce(1, 2), relu(1, 4, free=[1]), wait(2, 3), result=3)).safe


def test_a_future_may_be_started_in_one_function_and_waited_on_in_another() -> None:
    starts = double(reduce(0, 1), results=[1])
    assert prove(program(call([0], [1]), relu(0, 2), wait(1, 3), result=3, functions=starts)).safe
    waits = double(wait(0, 1), results=[1])
    assert prove(program(reduce(0, 1), call([1], [2], [1]), result=2, functions=waits)).safe


def test_a_future_that_a_call_returned_must_be_waited_on() -> None:
    starts = double(reduce(0, 1), results=[1])
    verdict = prove(program(call([0], [1]), call([0], [2]), wait(2, 3), result=3, functions=starts))
    assert found(verdict) == ("E0706", [("body", 0), ("main", 2)])
    assert "called by main[0]" in verdict.render()


def test_a_future_given_to_a_function_that_forgets_it_is_found() -> None:
    forgets = double(relu(1, 2), results=[2], arguments=[0, 1])
    verdict = prove(program(reduce(0, 1), call([1, 0], [2], [1]), result=2, functions=forgets))
    assert found(verdict) == ("E0705", main(1, 0))


def test_a_future_waited_on_by_a_callee_and_again_by_the_caller_is_found() -> None:
    waits = double(wait(0, 1), results=[1])
    verdict = prove(program(reduce(0, 1), call([1], [2]), wait(1, 3), result=3, functions=waits))
    assert found(verdict) == ("E0707", [("main", 2), ("body", 0)])


def test_a_dropped_wait_inside_a_folded_body_is_named_in_the_body() -> None:
    one = layered(4)
    body = one.functions["layers_forward"]
    code = tuple(relu(5, 6) if index == 4 else instruction for index, instruction in enumerate(body.code))
    assert body.code[4].op == "comm.wait"
    broken = replace(one, functions={**one.functions, "layers_forward": replace(body, code=code)})
    assert found(prove(broken)) == ("E0706", [("layers_forward", 2), ("layers_forward", len(code) - 1)])


def test_a_counterexample_is_rendered_with_sources_and_as_json() -> None:
    verdict = prove(program(reduce(0, 1), relu(0, 2), result=2))
    assert verdict.render().splitlines() == [
        'model.py:31: error[E0706]: a future is still not waited on when "main" ends',
        "  ranks 0-1: function main[0] comm.all_reduce_start over tp at model.py:31 (model.layers.*.mlp)",
        "  ranks 0-1: function main[1] aten.relu.default at model.py:7 (embed)",
        "help: wait for it, or return it to the caller",
    ]
    report = verdict.to_json()
    assert report["verdict"] == "counterexample"
    assert report["counterexample"]["places"][0]["location"] == ["model.py", 31, "model.layers.*.mlp"]  # type: ignore[index,call-overload]


def bucket(slots: Sequence[int], out: Sequence[int | None], free: Sequence[int] = ()) -> Instruction:
    """Sums of several tensors, by one collective."""
    operands = [S(slot) for slot in slots]
    return step("comm.all_reduce_coalesced_start", operands, axes=["tp"], reduce="sum", out=out, free=free, loc=1)


def test_a_bucket_is_one_collective_whose_futures_are_waited_on_in_any_order() -> None:
    verdict = prove(program(relu(0, 1), bucket([0, 1], [2, 3]), wait(3, 4), relu(4, 5), wait(2, 6), result=6))
    assert verdict.safe and verdict.collectives == 1


@pytest.mark.parametrize(
    ("code", "result", "said", "places"),
    [
        ((bucket([0, 1], [2, 3]), wait(2, 4)), 4, "E0706", main(1, 2)),
        ((bucket([0, 1], [2, None]), wait(2, 4)), 4, "E0705", main(1, 1)),
        ((bucket([0, 1], [2, 3]), wait(2, 4, free=[]), wait(2, 5), wait(3, 6)), 6, "E0707", main(3, 2)),
        ((bucket([0, 1], [2, 3]), relu(0, 1), wait(2, 4), wait(3, 5)), 5, "E0709", main(2, 1)),
        ((bucket([0, 1], [2, 3]), relu(0, 4, free=[1]), wait(2, 5), wait(3, 6)), 6, "E0709", main(2, 1)),
        ((bucket([0, 1], [2, 3]), relu(3, 4), wait(2, 5), wait(3, 6)), 6, "E0708", main(2, 1)),
    ],
    ids=["one is not waited on", "one has no slot", "twice", "overwritten", "freed", "not waited on"],
)
def test_a_fault_of_one_tensor_of_a_bucket_is_found(
    code: Sequence[Instruction], result: int, said: str, places: list[Spot]
) -> None:
    assert found(prove(program(relu(0, 1), *code, result=result))) == (said, places)


def test_all_of_a_bucket_counts_until_each_of_its_futures_is_waited_on() -> None:
    """A tensor has 64 bytes: two operands (one is the input), a flat result of 128 bytes, and the op's own 64."""
    one_by_one = (bucket([0, 1], [2, 3], free=[1]), wait(2, 4, free=[2, 4]), relu(0, 5), wait(3, 6, free=[3, 5]))
    assert prove(program(relu(0, 1), *one_by_one, result=6)).peak_bytes == 64 + 64 + 128 + 64
    kept = (bucket([0, 1], [2, 3], free=[1]), wait(2, 4, free=[2, 4]), wait(3, 6), relu(0, 5, free=[5]))
    assert prove(program(relu(0, 1), *kept, result=6)).peak_bytes == 64 + 128 + 64


def test_buckets_of_other_tensors_or_of_two_dtypes_are_refused() -> None:
    wide = program(bucket([0, 0], [2, 3]), wait(2, 4), wait(3, 5), result=5)
    narrow = program(bucket([0], [2]), wait(2, 5), result=5)
    verdict = prove_ranks([RankClass(wide, (0,)), RankClass(narrow, (1,))])
    assert found(verdict)[0] == "E0710" and "its shape is [4, 4], [4, 4] here" in verdict.render()
    cast = step("aten._to_copy.default", S(0), out=[1], dtype=torch.float64)
    mixed = prove(program(cast, bucket([0, 1], [2, 3]), wait(2, 4), wait(3, 5), result=4))
    assert found(mixed)[0] == "E0714" and "of one dtype, found float32, float64" in mixed.render()


def test_a_wait_in_a_bucket_is_the_first_of_its_waits_for_the_order_of_ranks() -> None:
    """Rank 0 waits for a bucket's second tensor after the other collective is started; that is no deadlock."""
    other = reduce(0, 5, "dp")
    code = (bucket([0, 0], [2, 3]), wait(2, 4), other, wait(3, 6), wait(5, 7))
    assert prove(program(*code, result=7, mesh=(("dp", 2), ("tp", 2)))).safe
