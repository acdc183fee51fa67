"""Programs whose stages send and receive: proved with all ranks at once, or refuted with both instructions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Function, Instruction
from stretto.runtime.prover.prove import RankClass, prove, prove_ranks
from stretto.runtime.prover.verdict import Counterexample, Verdict

from ..pipe_program import Pipe
from .programs import S, step

F64 = torch.float64


def with_entry(program: Program, stage: int, code: tuple[Instruction, ...]) -> Program:
    """The program with other instructions on one stage."""
    name = f"main_{stage}"
    function = program.functions[name]
    slots = max(
        function.slots, 1 + max(slot for instruction in code for slot in (*instruction.reads(), *instruction.writes()))
    )
    return replace(program, functions={**program.functions, name: replace(function, code=code, slots=slots)})


def code(program: Program, stage: int) -> list[Instruction]:
    return list(program.functions[f"main_{stage}"].code)


def refuted(verdict: Verdict) -> Counterexample:
    assert verdict.counterexample is not None
    return verdict.counterexample


def shown(verdict: Verdict) -> list[tuple[tuple[int, ...], str, str]]:
    return [(place.ranks, place.function, place.op) for place in refuted(verdict).places]


@pytest.mark.parametrize("pipe", [Pipe(), Pipe(4, dp=2), Pipe(1), Pipe(2, rows=24, dp=3)], ids=str)
def test_a_pipeline_is_proved_with_a_peak_for_each_stage(pipe: Pipe) -> None:
    for program in (pipe.train(), pipe.infer()):
        verdict = prove(program)
        assert verdict.safe, verdict.render()
        assert [peak.ranks for peak in verdict.peaks] == [tuple(range(pipe.dp)), tuple(range(pipe.dp, 2 * pipe.dp))]
    assert prove(pipe.train()).messages == pipe.microbatches + 1
    assert f"{pipe.microbatches + 1} messages on a rank" in prove(pipe.train()).render()


def test_a_stage_that_waits_before_it_sends_what_the_other_waits_for_is_a_deadlock() -> None:
    program = Pipe(2, dp=2).train()
    first = code(program, 0)
    wait = next(index for index, instruction in enumerate(first) if instruction.op == "comm.wait")
    second = [index for index, instruction in enumerate(first) if instruction.op == "comm.send"][1]
    later = first[second]
    del first[second]
    first.insert(wait, later)
    # stage 1 works on microbatch 1 only after it was sent, and before it gives back the first one's gradient
    last = code(program, 1)
    back = next(index for index, instruction in enumerate(last) if instruction.op == "comm.send")
    give = last.pop(back)
    waits = [index for index, instruction in enumerate(last) if instruction.op == "comm.wait"]
    last.insert(waits[1] + 1, give)
    verdict = prove(with_entry(with_entry(program, 0, tuple(first)), 1, tuple(last)))
    assert refuted(verdict).code == "E0712"
    assert {(place[1], place[2]) for place in shown(verdict)} == {("main_0", "comm.wait"), ("main_1", "comm.wait")}
    text = verdict.render()
    assert "deadlock: 2 ranks wait for each other" in text
    assert "waits there until its message is sent; it sends what another rank needs only later" in text
    assert "comm.send to pp=1 at model.py:8" in text


def test_a_message_of_another_shape_than_is_received_names_both_sides() -> None:
    program = Pipe().train()
    changed = [
        replace(instruction, kwargs={**instruction.kwargs, "size": [2, 4]})
        if instruction.op == "comm.receive_start"
        else instruction
        for instruction in code(program, 1)
    ]
    verdict = prove(with_entry(program, 1, tuple(changed)))
    assert refuted(verdict).code == "E0718"
    assert (
        "message 0 from rank 0 to rank 1 is sent as float64 [4, 4], but received as float64 [2, 4]" in verdict.render()
    )
    assert shown(verdict) == [((1,), "main_1", "comm.receive_start"), ((0,), "main_0", "comm.send")]


def test_a_message_that_is_never_sent_and_one_that_is_never_received_are_named() -> None:
    program = Pipe(dp=2).train()
    unsent = [instruction for instruction in code(program, 1) if instruction.op != "comm.send"]
    verdict = prove(with_entry(program, 1, tuple(unsent)))
    assert refuted(verdict).code == "E0719"
    assert "message 0 from rank 2 to rank 0 is received, but never sent" in verdict.render()
    more = [*code(program, 1), step("comm.send", S(0), axis="pp", peer=0)]
    verdict = prove(with_entry(program, 1, tuple(more)))
    assert refuted(verdict).code == "E0719"
    assert "message 3 from rank 2 to rank 0 is sent, but never received" in verdict.render()


def test_a_receive_is_waited_on_exactly_once() -> None:
    program = Pipe().train()
    start = step("comm.receive_start", axis="pp", peer=0, size=[4, 4], dtype=F64, out=[90])
    assert refuted(prove(with_entry(program, 1, (*code(program, 1), start)))).code == "E0706"


def test_messages_inside_functions_are_found_on_all_their_calls() -> None:
    """A stage whose sends and receives stand in functions that are called for each microbatch."""
    give = Function(1, (0,), (), (step("comm.send", S(0), axis="pp", peer=1),))
    receive = step("comm.receive_start", axis="pp", peer=0, size=[8, 3], dtype=F64, out=[0])
    take = Function(2, (), (1,), (receive, step("comm.wait", S(0), out=[1])))
    base = Pipe().infer()
    x = replace(base.inputs[2], stages=(0,))
    y = replace(base.outputs[0], shape=(8, 3), stages=(1,))
    calls = tuple(step("call", "give", [S(0)]) for _ in range(3))
    arguments = tuple(step("call", "take", [], out=[index]) for index in range(3))
    functions = {
        "give": give,
        "take": take,
        "main_0": Function(1, (0,), (), calls),
        "main_1": Function(3, (), (2,), arguments),
    }
    program = replace(base, inputs=(x,), outputs=(y,), functions=functions)
    verdict = prove(program)
    assert verdict.safe, verdict.render()
    assert verdict.messages == 3
    short = replace(program, functions={**functions, "main_0": Function(1, (0,), (), calls[:2])})
    assert "message 2 from rank 0 to rank 1 is received, but never sent" in prove(short).render()


def test_a_cap_on_memory_is_judged_stage_by_stage() -> None:
    program = Pipe(4).train()
    first, last = prove(program).peaks
    assert first.bytes != last.bytes
    verdict = prove(program, memory_cap_bytes=min(first.bytes, last.bytes))
    assert refuted(verdict).code == "E0713"
    worst = first if first.bytes > last.bytes else last
    assert refuted(verdict).places[0].ranks == worst.ranks
    assert prove(program, memory_cap_bytes=worst.bytes).safe


def test_a_tensor_that_ranks_of_a_stage_reduce_is_seen_by_all_of_them() -> None:
    program = Pipe(2, dp=2).train()
    other = with_entry(
        program, 0, tuple(instruction for instruction in code(program, 0) if instruction.op != "aten.add.Scalar")
    )
    other = replace(other, outputs=other.outputs[:3])
    name = other.functions["main_0"]
    other = replace(other, functions={**other.functions, "main_0": replace(name, results=name.results[:2])})
    assert prove_ranks([RankClass(program, (0, 2, 3)), RankClass(other, (1,))]).safe
    cut = tuple(instruction for instruction in code(program, 0) if "reduce" not in instruction.kwargs)
    final = next(instruction for instruction in code(program, 0) if instruction.op == "comm.all_reduce_start")
    again = tuple(
        step("aten.clone.default", *final.args, out=instruction.out)
        if instruction.args == (S(final.writes()[0]),)
        else instruction
        for instruction in cut
    )
    lacking = with_entry(program, 0, again)
    verdict = prove_ranks([RankClass(program, (0, 2, 3)), RankClass(lacking, (1,))])
    assert refuted(verdict).code == "E0711"


def together(first: list[Instruction], second: list[Instruction]) -> Program:
    """Two stages, each with x of shape (8, 3) in slot 0 and its last slot as result."""
    base = Pipe().infer()
    x = replace(base.inputs[2], stages=None)
    y = replace(base.outputs[0], shape=(8, 3))
    entries = {
        f"main_{stage}": Function(10, (0,), (next(iter(code[-1].writes())),), tuple(code))
        for stage, code in enumerate((first, second))
    }
    return replace(base, inputs=(x,), outputs=(y,), functions=entries)


def meet(out: int) -> Instruction:
    return step("comm.all_reduce_start", S(0), axes=["pp"], reduce="sum", out=[out])


def join(slot: int, out: int) -> Instruction:
    return step("comm.wait", S(slot), out=[out])


SEND = step("comm.send", S(0), axis="pp", peer=1)
RECEIVE = step("comm.receive_start", axis="pp", peer=0, size=[8, 3], dtype=F64, out=[3])


def test_what_is_sent_after_a_collective_was_started_is_sent_before_it_is_done() -> None:
    late = [RECEIVE, join(3, 4), meet(1), join(1, 2)]
    assert prove(together([meet(1), SEND, join(1, 2)], late)).safe
    verdict = prove(together([meet(1), join(1, 2), SEND, join_again(2)], late))
    assert refuted(verdict).code == "E0712"
    assert {(place[0], place[2]) for place in shown(verdict)} == {((0,), "comm.all_reduce_start"), ((1,), "comm.wait")}
    text = verdict.render()
    assert "rank 0 waits there until all members of the group have started it; it sends what another rank needs" in text
    assert "rank 1 waits there until its message is sent; it starts what another rank needs only later" in text


def join_again(slot: int) -> Instruction:
    return step("aten.clone.default", S(slot), out=[9])


def test_a_collective_behind_another_one_in_the_lane_is_not_done() -> None:
    """Both are started before either is waited on, in another order on the second stage: shapes tell them apart."""
    other = step("aten.t.default", S(0), out=[5])
    second = step("comm.all_reduce_start", S(5), axes=["pp"], reduce="sum", out=[6])
    first = [other, meet(1), second, join(6, 7), join(1, 2)]
    swapped = [other, second, meet(1), join(1, 2), join(6, 7), join_again(2)]
    assert prove(together(first, [*first[:3], join(1, 2), join(6, 7), join_again(2)])).safe
    assert refuted(prove(together(first, swapped))).code == "E0710"


def with_functions(first: list[Instruction], second: list[Instruction], **functions: Function) -> Program:
    program = together(first, second)
    return replace(program, functions={**program.functions, **functions})


LATE = [RECEIVE, join(3, 4), meet(1), join(1, 2)]


def call(name: str, slots: list[int], out: list[int]) -> Instruction:
    return step("call", name, [S(slot) for slot in slots], out=out)


def test_a_collective_that_a_function_starts_is_not_waited_on_before_its_caller_waits() -> None:
    starts = Function(2, (0,), (1,), (meet(1),))
    assert prove(with_functions([call("starts", [0], [1]), SEND, join(1, 2)], LATE, starts=starts)).safe
    early = [call("starts", [0], [1]), join(1, 2), SEND, join_again(2)]
    verdict = prove(with_functions(early, LATE, starts=starts))
    assert refuted(verdict).code == "E0712"
    assert {place[1:] for place in shown(verdict)} == {("starts", "comm.all_reduce_start"), ("main_1", "comm.wait")}


def test_a_receive_that_a_function_starts_blocks_only_where_its_caller_waits() -> None:
    """Both stages start to receive, then send, then wait; two functions deep on the first."""
    back = step("comm.receive_start", axis="pp", peer=1, size=[8, 3], dtype=F64, out=[0])
    inner = Function(1, (), (0,), (back,))
    outer = Function(1, (), (0,), (call("inner", [], [0]),))
    answer = step("comm.send", S(0), axis="pp", peer=0)
    second = [RECEIVE, answer, join(3, 4)]
    both = {"inner": inner, "outer": outer}
    assert prove(with_functions([call("outer", [], [3]), SEND, join(3, 4)], second, **both)).safe
    waits_first = [call("outer", [], [3]), join(3, 4), SEND, join_again(4)]
    assert prove(with_functions(waits_first, second, **both)).safe, "the other stage sends before it waits"
    other = [RECEIVE, join(3, 4), answer, join_again(4)]
    assert refuted(prove(with_functions(waits_first, other, **both))).code == "E0712"


def test_what_a_function_does_before_it_waits_for_its_callers_future_comes_before_the_wait() -> None:
    sends_first = Function(3, (0, 1), (2,), (SEND, join(1, 2)))
    waits_first = Function(3, (0, 1), (2,), (join(1, 2), SEND))
    first = [meet(1), call("ends", [0, 1], [2])]
    assert prove(with_functions(first, LATE, ends=sends_first)).safe
    assert refuted(prove(with_functions(first, LATE, ends=waits_first))).code == "E0712"
