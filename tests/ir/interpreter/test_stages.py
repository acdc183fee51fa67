"""Modules whose stages have entries of their own mean what the unsharded module means, or are refused and why."""

from __future__ import annotations

import pytest
import torch
from stretto.ir.equivalence import compare, random_inputs
from stretto.ir.equivalence.compare import Verdict
from stretto.ir.interpreter import DeadlockError, Floats, InterpreterError, estimate, run, run_ranks
from stretto.ir.module import Module
from stretto.ir.verifier import verify

from .staged import FIRST, PART, SECOND, SEGMENTS, S, captured, in_order, in_segments, receive, send
from .texts import at


def replaced(lines: list[str], old: str, new: list[str]) -> list[str]:
    """The lines with those that begin with `old` replaced."""
    assert any(line.startswith(old) for line in lines)
    return [item for line in lines for item in (new if line.startswith(old) else [line])]


@pytest.mark.parametrize("after", [in_segments, in_order])
def test_modules_with_a_microbatch_axis_and_in_order_compute_what_was_captured(after: object) -> None:
    assert callable(after)
    module: Module = after()
    verify(module)
    actual = compare(captured(), module)
    assert {r.verdict for r in actual.results} == {Verdict.EQUAL}
    assert [r.name for r in actual.results] == ["output loss", "gradient w0", "gradient w1"]


def test_a_module_in_segments_is_compared_with_itself_in_order() -> None:
    assert compare(in_segments(), in_order()).is_equal


def test_inputs_are_paired_by_name_and_results_by_kind_name_and_index() -> None:
    text = in_order().text()
    for old, new in ((0, 9), (2, 0), (9, 2)):
        text = text.replace(f"order = {old} : i64", f"order = {new} : i64")
    actual = compare(captured(), Module.parse(text))
    assert actual.is_equal and [r.name for r in actual.results] == ["output loss", "gradient w0", "gradient w1"]


def test_inputs_go_to_the_entries_by_their_order_and_results_come_back_so() -> None:
    inputs = random_inputs(in_order(), 3)
    assert [tuple(t.shape) for t in inputs] == [(4, 4), (4, 4), (8, 4), ()]
    w0, w1, x, t = (input.double() for input in inputs)
    loss, g0, g1 = run(in_order(), inputs, floats=Floats.FLOAT64)
    y = x @ w0 @ w1
    torch.testing.assert_close(loss, (y * y).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(g0, x.T @ (2 * y * t @ w1.T), rtol=1e-12, atol=0)
    torch.testing.assert_close(g1, (x @ w0).T @ (2 * y * t), rtol=1e-12, atol=0)


def test_the_microbatch_axis_has_no_ranks_once_stages_have_entry_functions() -> None:
    assert estimate(in_segments()).ranks == 8
    assert estimate(in_order()).ranks == 4


def test_a_receive_without_a_send_is_a_deadlock_that_names_both_ranks() -> None:
    early = [f"%gh0 = {receive(1)} {at('first', 4)}", *[line for line in FIRST if not line.startswith("%gh0")]]
    second = replaced(SECOND, "%h0", [f"%h0 = {receive(0)} {at('second', 9)}"])
    with pytest.raises(DeadlockError) as caught:
        run(in_order(early, second), random_inputs(in_order(), 0))
    error = caught.value
    assert error.code == "E0657"
    waits = [(s.rank, s.op, s.origin.line, s.waits_for) for s in error.stuck]
    assert waits == [(0, "comm.receive", 4, (1,)), (1, "comm.receive", 9, (0,)), (2, "comm.receive", 4, (3,)),
                     (3, "comm.receive", 9, (2,))]  # fmt: skip
    assert "before its own receive" in (error.help or "")


def test_a_rank_that_waits_for_a_finished_rank_is_named() -> None:
    second = replaced(SECOND, "return", [f"%more = {receive(0)}", SECOND[-1]])
    with pytest.raises(DeadlockError) as caught:
        run(in_order(second=second), random_inputs(in_order(), 0))
    assert [(s.rank, s.waits_for) for s in caught.value.stuck] == [(1, (0,)), (3, (2,))]
    assert caught.value.finished == (0, 2)


def test_a_tensor_that_is_sent_and_never_taken_is_refused() -> None:
    first = replaced(FIRST, send("h1", 1), [send("h1", 1), f"{send('h0', 1)} {at('first', 7)}"])
    with pytest.raises(InterpreterError, match="rank 0 sends rank 1 a tensor that rank 1 never receives") as caught:
        run(in_order(first), random_inputs(in_order(), 0))
    assert caught.value.code == "E0663" and "first at model.py:7" in str(caught.value)


def test_what_is_sent_must_have_the_shape_that_is_received() -> None:
    second = replaced(SECOND, "%h0", [f"%all = {receive(0, 'tensor<3x4xf32>', '3, 4')}", f"%h0 = {receive(0)}"])
    with pytest.raises(DeadlockError, match=r"shape \(2, 4\) is sent, \(3, 4\) is received") as caught:
        run(in_order(second=second), random_inputs(in_order(), 0))
    assert caught.value.code == "E0656" and [s.rank for s in caught.value.stuck] == [0, 1]


def test_what_is_sent_first_is_received_first() -> None:
    swapped = replaced(FIRST, send("h0", 1), [])
    swapped = replaced(swapped, send("h1", 1), [send("h1", 1), send("h0", 1)])
    actual = compare(captured(), in_order(swapped))
    assert [r.name for r in actual.of(Verdict.DIFFERENT)] == ["gradient w0"]


def test_receives_that_are_started_early_give_what_receives_give() -> None:
    future = f"!async.value<{PART}>"
    start = receive(1, future).replace("comm.receive", "comm.receive_start")
    first = [f"%f0 = {start}", f"%f1 = {start}", *FIRST]
    for m in range(2):
        first = replaced(first, f"%gh{m}", [f'%gh{m} = "comm.wait"(%f{m}) : ({future}) -> {PART}'])
    module = in_order(first)
    verify(module)
    assert compare(captured(), module).is_equal


def test_stages_that_give_other_values_of_one_output_are_refused() -> None:
    twice = f'%twice = "aten.add_tensor"(%loss, %loss) : ({S}, {S}) -> {S}'
    first = replaced(FIRST, "return", [twice, FIRST[-1].replace("%loss", "%twice")])
    with pytest.raises(InterpreterError, match='result "output loss"') as caught:
        run(in_order(first), random_inputs(in_order(), 0))
    assert caught.value.code == "E0659"


def test_each_rank_of_a_stage_may_have_a_module_of_its_own() -> None:
    good = in_order()
    old = '"aten.add_tensor"(%loss_0, %loss_1)'
    bad = in_order(second=[line.replace(old, old.replace("add", "mul")) for line in SECOND])
    inputs = random_inputs(good, 0)
    expected = run(good, inputs)
    assert all(torch.equal(a, b) for a, b in zip(run_ranks([good] * 4, inputs), expected, strict=True))
    loss, *_ = run_ranks([good, good, good, bad], inputs)
    assert not torch.equal(loss, expected[0])
    with pytest.raises(InterpreterError, match="different meshes or signatures"):
        run_ranks([good, good, good, in_segments()], inputs)


def test_a_call_says_which_microbatch_offsets_and_shards_are_of() -> None:
    offset = (
        f'%o = "comm.offset"() {{axes = ["dp", "microbatch"], chunk = 1 : i64}} : () -> tensor<i64>\n'
        f'%a = "aten.add_tensor"(%h0, %o) : ({PART}, tensor<i64>) -> {PART}\nreturn %a'
    )
    segments = SEGMENTS.replace("return %h :", f"{offset} :").replace(
        '%h = "aten.mm_default"(%x, %w0)', '%h0 = "aten.mm_default"(%x, %w0)'
    )
    expected = run(in_order(), inputs := random_inputs(in_order(), 5), floats=Floats.FLOAT64)
    loss, *_ = run(in_order(segments=segments), inputs, floats=Floats.FLOAT64)
    w0, w1, x, _ = (input.double() for input in inputs)
    numbers = torch.arange(4).repeat_interleave(2)[:, None]
    y = (x @ w0 + numbers) @ w1
    torch.testing.assert_close(loss, (y * y).sum(), rtol=1e-12, atol=0)
    assert not torch.equal(loss, expected[0])


def test_what_depends_on_a_microbatch_is_refused_outside_of_a_call_that_names_one() -> None:
    first = ['%o = "comm.offset"() {axes = ["microbatch"], chunk = 1 : i64} : () -> tensor<i64>', *FIRST]
    with pytest.raises(InterpreterError, match="outside of a call for a microbatch"):
        run(in_order(first), random_inputs(in_order(), 0))


def test_a_microbatch_that_does_not_exist_is_refused() -> None:
    segments = SEGMENTS.replace(
        "return %h :", '%o = "comm.offset"() {axes = ["microbatch"], chunk = 1 : i64} : () -> tensor<i64>\nreturn %h :'
    )
    first = [line.replace("microbatch = 1", "microbatch = 2") for line in FIRST]
    with pytest.raises(InterpreterError, match="microbatch 2 is out of range"):
        run(in_order(first, segments=segments), random_inputs(in_order(), 0))


def test_a_collective_over_microbatches_is_refused_once_stages_have_entry_functions() -> None:
    first = [line.replace('axes = ["dp"]', 'axes = ["microbatch"]') for line in FIRST]
    with pytest.raises(InterpreterError, match="the mesh has dp, pp"):
        run(in_order(first), random_inputs(in_order(), 0))


def test_a_module_without_one_of_its_entries_is_refused() -> None:
    text = in_order().text().replace("@main_1", "@other")
    with pytest.raises(InterpreterError, match='the module has no function "main_1"'):
        run(Module.parse(text), [])
