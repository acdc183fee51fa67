"""Ranks that take turns: stages with entries of their own, on threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stretto.runtime import Program, ProgramError, RunError
from stretto.runtime.communicator import Communicator
from stretto.runtime.errors import CollectiveError
from stretto.runtime.program.records import Function, Pipeline
from stretto.runtime.rank.unreduced_gradients import UnreducedGradients
from stretto.runtime.threads.session import RankThreads, Replicas
from torch import Tensor

from .pipe_program import Pipe
from .tiny_programs import S, on_ranks, step

PP = (("pp", 2),)


def given(pipe: Pipe) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    b, a = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 2), (3, 4)))
    return [b, a], torch.randn(pipe.rows, 3, dtype=torch.float64)


def expected(pipe: Pipe) -> tuple[Tensor, dict[str, Tensor]]:
    (b, a), x = given(pipe)
    loss = ((x @ a @ b) ** 2).sum()
    gradient_b, gradient_a = torch.autograd.grad(loss, [b, a])
    return loss.detach(), {"b": gradient_b, "a": gradient_a}


@pytest.mark.parametrize("pipe", [Pipe(), Pipe(4), Pipe(1), Pipe(2, dp=2)], ids=str)
def test_loss_and_gradients_of_a_pipeline_are_those_of_one_device(pipe: Pipe) -> None:
    parameters, x = given(pipe)
    loss, gradients = expected(pipe)
    with RankThreads(pipe.train(), replicas=Replicas.CHECK) as session:
        (outputs,), state = session.forward(parameters, [torch.ones(1, dtype=torch.float64)], [x])
        got = session.backward(state, [torch.ones((), dtype=torch.float64)])
    torch.testing.assert_close(outputs, loss, rtol=1e-12, atol=0)
    assert sorted(got) == ["a", "b"]
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-12, atol=1e-12)
    assert state.buffers["seen"].tolist() == [2.0]


def test_held_gradients_are_multiplied_by_the_scale_and_by_the_tangent() -> None:
    pipe = Pipe()
    parameters, x = given(pipe)
    with RankThreads(pipe.train()) as session:
        buffers = [torch.ones(1, dtype=torch.float64)]
        (loss,), state = session.forward(parameters, buffers, [x], scale=0.5)
        got = session.backward(state, [torch.tensor(6.0, dtype=torch.float64)])
        with pytest.raises(RunError, match="backward was already run"):
            session.backward(state, [torch.ones((), dtype=torch.float64)])
    torch.testing.assert_close(loss, expected(pipe)[0])
    torch.testing.assert_close(got["a"], 3 * expected(pipe)[1]["a"])


def test_gradients_of_stages_wait_unreduced() -> None:
    pipe = Pipe(dp=2, reduced=False)
    parameters, x = given(pipe)
    one, unreduced = torch.ones((), dtype=torch.float64), UnreducedGradients()
    with RankThreads(pipe.train()) as session:
        for _ in range(2):
            _, state = session.forward(parameters, [torch.ones(1, dtype=torch.float64)], [x])
            assert session.backward(state, [one], unreduced) == {}
        got = session.reduce(unreduced)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, 2 * expected(pipe)[1][name])


def test_the_forward_of_a_pipeline_gives_outputs_of_the_whole_batch() -> None:
    pipe = Pipe(4, dp=2)
    parameters, x = given(pipe)
    with RankThreads(pipe.infer(), replicas=Replicas.CHECK) as session:
        (y,), state = session.forward(parameters, [], [x])
        with pytest.raises(RunError, match="compiled for inference"):
            session.backward(state, [])
    torch.testing.assert_close(y, x @ parameters[1].detach() @ parameters[0].detach())


def test_a_pipeline_is_the_same_from_its_folder(tmp_path: Path) -> None:
    program = Pipe().train()
    program.save(tmp_path / "pipe")
    loaded = Program.load(tmp_path / "pipe")
    assert loaded.to_json() == program.to_json()
    assert loaded.pipeline == program.pipeline
    assert [argument.name for argument in loaded.entries[1].inputs] == ["b", "loss"]
    assert [argument.slot for argument in loaded.entries[0].inputs] == [0, 1, 2]


def test_random_ops_and_offsets_know_their_microbatch() -> None:
    inside = Function(1, (), (0,), (step("rank.offset", axes=["pp", "microbatch"], chunk=10, out=[0]),))
    between = Function(1, (), (0,), (step("call", "inside", [], out=[0]),))
    code = tuple(step("call", "between", [], out=[microbatch], microbatch=microbatch) for microbatch in range(3))
    whole = Function(3, (), (2,), code)
    base = Pipe(3, rows=3).infer()
    functions = {"main_0": whole, "main_1": whole, "inside": inside, "between": between}
    output = replace(base.outputs[0], shape=(), dtype="int64", stages=(1,))
    main_0 = replace(whole, results=())
    program = replace(base, inputs=(), outputs=(output,), functions={**functions, "main_0": main_0})
    with RankThreads(program) as session:
        (outputs,), _ = session.forward([], [], [])
    assert int(outputs) == 10 * (1 * 3 + 2)


def refused(program: Program) -> str:
    with pytest.raises(ProgramError) as caught:
        _ = program.validated
    return caught.value.render()


def with_code(entry: str, *code: Any) -> Program:
    program = Pipe().train()
    function = program.functions[entry]
    return replace(program, functions={**program.functions, entry: replace(function, code=(*function.code, *code))})


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (replace(Pipe().train(), pipeline=Pipeline("tp", ("main_0", "main_1"), 2)), "'tp' is not an axis of the mesh"),
        (replace(Pipe().train(), pipeline=Pipeline("pp", ("main_0",), 2)), "expected 2 functions"),
        (replace(Pipe().train(), pipeline=Pipeline("pp", ("main_0", "main_2"), 2)), 'there is no "main_2"'),
        (replace(Pipe().train(), pipeline=None), 'there is no "main"'),
        (with_code("main_0", step("comm.send", S(0), axis="pp", peer=2)), "2 is not a coordinate on 'pp'"),
        (with_code("main_0", step("comm.send", S(0), axis="tp", peer=0)), "not axes of the mesh"),
        (with_code("main_0", step("comm.send", S(0), axis="pp", peer=0, out=[0])), "returns nothing"),
        (with_code("main_0", step("comm.receive_start", axis="pp", peer=0, size=[2], dtype=5, out=[0])), "not a dtype"),
        (with_code("main_0", step("rank.offset", axes=["microbatch"], chunk=1, out=[0])), "outside of a call"),
        (with_code("main_0", step("call", "main_1", [], out=[])), "expected [function, [slots]]"),
        (with_code("main_0", step("call", "cut", [S(1)], out=[0])), "outside of a call"),
        (with_code("main_0", step("call", "cut", [S(1)], out=[0], microbatch=2)), "not a microbatch of 2"),
        (replace(Pipe().train(), inputs=Pipe().train().inputs[1:]), "expected 1 inputs, found 2"),
    ],
)
def test_what_no_pipeline_can_be_is_named(program: Program, message: str) -> None:
    assert message in refused(program)


def exchanged(job: Callable[[Communicator], object], timeout_s: float = 20.0) -> list[object]:
    return on_ranks(PP, job, timeout_s)


def test_messages_arrive_in_the_order_of_their_sends_and_sending_never_waits() -> None:
    def job(rank: Communicator) -> list[float]:
        other = 1 - rank.rank
        for number in range(3):
            rank.send(torch.tensor([float(10 * rank.rank + number)]), "pp", other)
        handles = [rank.receive_start("pp", other, [1], torch.float32) for _ in range(3)]
        return [float(handle.wait()) for handle in handles]

    assert exchanged(job) == [[10.0, 11.0, 12.0], [0.0, 1.0, 2.0]]


def test_a_message_of_another_shape_or_dtype_is_named_by_both_ranks() -> None:
    def job(rank: Communicator) -> None:
        if rank.rank == 0:
            rank.send(torch.zeros(2), "pp", 1, "the send")
        else:
            rank.receive_start("pp", 0, [3], torch.float32, "the receive").wait()

    with pytest.raises(CollectiveError) as caught:
        exchanged(job)
    assert caught.value.code == "E0321"
    assert "rank 1 receives [3] of float32, but rank 0 sent [2] of float32" in caught.value.render()
    assert "rank 1 is at the receive" in caught.value.render()


def test_a_message_that_nobody_receives_is_no_silent_one() -> None:
    program = with_code("main_0", step("comm.send", S(0), axis="pp", peer=1))
    parameters, x = given(Pipe())
    with RankThreads(program) as session:
        for _ in range(2):
            with pytest.raises(CollectiveError, match="from rank 0 to rank 1 was sent, but never received") as caught:
                session.forward(parameters, [torch.ones(1, dtype=torch.float64)], [x])
            assert "comm.send" in caught.value.render()


def test_a_receive_that_nobody_sends_to_ends_after_the_timeout() -> None:
    is_over = threading.Event()

    def job(rank: Communicator) -> None:
        if rank.rank == 0:
            is_over.wait(20.0)  # at work on something else
            return
        try:
            rank.receive_start("pp", 0, [3], torch.float32, "the receive").wait()
        finally:
            is_over.set()

    with pytest.raises(CollectiveError, match=r"rank 1 waited 0\.2 s in the receive for rank 0"):
        exchanged(job, 0.2)


def test_a_receive_from_a_rank_that_has_ended_its_step_ends_at_once() -> None:
    def job(rank: Communicator) -> None:
        if rank.rank == 1:
            rank.receive_start("pp", 0, [3], torch.float32, "the receive").wait()

    start = time.monotonic()
    with pytest.raises(CollectiveError, match="rank 1 waits in the receive for rank 0, which has ended the step"):
        exchanged(job, 30.0)
    assert time.monotonic() - start < 5


def test_a_rank_that_fails_wakes_those_that_wait_for_its_message() -> None:
    def job(rank: Communicator) -> None:
        if rank.rank == 1:
            rank.receive_start("pp", 0, [3], torch.float32).wait()
        raise ValueError("no")

    start = time.monotonic()
    with pytest.raises(ValueError, match="no"):
        exchanged(job)
    assert time.monotonic() - start < 5
