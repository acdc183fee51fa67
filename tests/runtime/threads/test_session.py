"""All ranks as threads: full tensors in, full tensors out, nothing left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from stretto.runtime import Program, RankThreads, Replicas, RunError
from stretto.runtime.program.records import Instruction
from stretto.runtime.rank.executor import Frame
from torch import Tensor

from ...rank_threads import begun_and_left, rank_threads
from ..tiny_programs import S, data_parallel, infer, linear, step


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = rank_threads()  # what an earlier test's compiled graphs still hold is not this one's
    yield
    assert not begun_and_left(before)


def one_step(session: RankThreads, w: Tensor, x: Tensor) -> tuple[list[Tensor], Tensor]:
    outputs, state = session.forward([w], [], [x])
    return outputs, session.backward(state, [torch.ones(())])["w"]


@pytest.mark.parametrize(("ranks", "width"), [(1, 4), (2, 4), (4, 4), (2, 5), (4, 5), (4, 2)])
def test_outputs_and_gradients_are_global_however_the_parameter_is_cut(ranks: int, width: int) -> None:
    w, x = torch.randn(width, 3), torch.randn(5, width)
    program = linear(ranks, width=width)
    with RankThreads(program) as session:
        (loss, y), gradient = one_step(session, w, x)
    torch.testing.assert_close(y, x @ w)
    torch.testing.assert_close(loss, (x @ w).square().sum())
    torch.testing.assert_close(gradient, x.t() @ (2 * (x @ w)))


def test_a_parameter_is_seen_as_it_is_at_every_step() -> None:
    for width in (4, 5):
        w, x = torch.nn.Parameter(torch.randn(width, 3)), torch.randn(5, width)
        with RankThreads(linear(width=width)) as session:
            for _ in range(3):
                (loss, _), gradient = one_step(session, w, x)
                torch.testing.assert_close(loss, (x @ w.detach()).square().sum())
                with torch.no_grad():
                    w -= 0.01 * gradient
            w.data = torch.randn(width, 3)
            (loss, _), _ = one_step(session, w, x)
            torch.testing.assert_close(loss, (x @ w.detach()).square().sum())


def test_an_evenly_cut_parameter_is_not_copied() -> None:
    w = torch.nn.Parameter(torch.randn(4, 3))
    with RankThreads(linear()) as session:
        one_step(session, w, torch.randn(5, 4))
        pointers = [session._views[rank]["w"][2].data_ptr() for rank in range(2)]
    assert pointers == [w.data_ptr(), w.data_ptr() + 2 * 3 * 4]


def test_forwards_may_be_outstanding() -> None:
    w, batches = torch.randn(4, 3), [torch.randn(5, 4) for _ in range(3)]
    with RankThreads(linear()) as session:
        states = [session.forward([w], [], [x])[1] for x in batches]
        for x, state in reversed(list(zip(batches, states, strict=True))):
            gradient = session.backward(state, [torch.ones(())])["w"]
            torch.testing.assert_close(gradient, x.t() @ (2 * (x @ w)))
        with pytest.raises(RunError) as caught:
            session.backward(states[0], [torch.ones(())])
    assert caught.value.code == "E0332"


def test_a_tangent_of_none_is_zero() -> None:
    with RankThreads(linear()) as session:
        _, state = session.forward([torch.randn(4, 3)], [], [torch.randn(5, 4)])
        assert not session.backward(state, [None])["w"].any()


def test_sharded_outputs_are_put_together_and_buffers_are_returned() -> None:
    w, x, count = torch.randn(3, 3), torch.randn(4, 3), torch.tensor(7.0)
    with RankThreads(data_parallel(), replicas=Replicas.CHECK) as session:
        (loss, y), state = session.forward([w], [count], [x])
        gradient = session.backward(state, [torch.tensor(2.0)])["w"]
    torch.testing.assert_close(y, x @ w)
    torch.testing.assert_close(loss, (x @ w).sum())
    torch.testing.assert_close(gradient, 2 * x.t() @ torch.ones(4, 3))
    assert {name: float(value) for name, value in state.buffers.items()} == {"count": 8.0}
    assert float(count) == 7.0


def test_outputs_are_the_callers_to_change() -> None:
    program = infer([step("aten.reshape.default", S(0), [2], out=[1])], [(2, 1)], [1])
    program = replace(program, outputs=tuple(replace(output, shape=(2,)) for output in program.outputs))
    x = torch.ones(2, 1)
    with RankThreads(program) as session:
        (y,), _ = session.forward([], [], [x])
        y.zero_()
    assert x.tolist() == [[1.0], [1.0]]


def test_a_missing_reduction_cannot_hide() -> None:
    with RankThreads(data_parallel(reduced=False), replicas=Replicas.CHECK) as session:
        _, state = session.forward([torch.randn(3, 3)], [torch.tensor(0.0)], [torch.randn(4, 3)])
        with pytest.raises(RunError) as caught:
            session.backward(state, [torch.ones(())])
    assert caught.value.code == "E0330"
    assert "the gradient 'w'" in caught.value.message
    assert "rank 1" in caught.value.message


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ([], "E0310", ["takes 1 tensors of kind 'input', found 0"]),
        ([torch.ones(6, 3)], "E0311", ["[6, 3]", "[4, 3]"]),
        ([torch.ones(5, 3)], "E0311", ["[5, 3]", "dim 0 is sharded over dp into 2 parts, which do not divide 5"]),
        ([torch.ones(4, 3).double()], "E0312", ["float64", "float32"]),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_with_its_size(inputs: list[Tensor], code: str, words: list[str]) -> None:
    with RankThreads(data_parallel()) as session, pytest.raises(RunError) as caught:
        session.forward([torch.ones(3, 3)], [torch.tensor(0.0)], inputs)
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.render()


def test_tangents_are_counted_and_inference_has_no_backward() -> None:
    with RankThreads(linear()) as session:
        _, state = session.forward([torch.ones(4, 3)], [], [torch.ones(5, 4)])
        with pytest.raises(RunError) as caught:
            session.backward(state, [])
    assert caught.value.code == "E0310"
    with RankThreads(infer([], [()], [0])) as session:
        _, state = session.forward([], [], [torch.ones(())])
        with pytest.raises(RunError) as caught:
            session.backward(state, [])
    assert caught.value.code == "E0333"


def test_a_constant_needs_a_value() -> None:
    program = infer([], [()], [0])
    program = replace(program, inputs=(replace(program.inputs[0], kind="constant", name="table"),))
    with pytest.raises(RunError) as caught:
        RankThreads(program)
    assert caught.value.code == "E0313"
    with RankThreads(replace(program, initial={"table": torch.tensor(3.0)})) as session:
        assert float(session.forward([], [], [])[0][0]) == 3.0


def failing_on_rank_1() -> Program:
    """Rank 1 cuts an empty chunk, so that its index is out of range; rank 0 waits for it in a collective."""
    code: list[Instruction] = [
        step("rank.offset", axes=["tp"], chunk=9, out=[1]),
        step("aten.index.Tensor", S(0), [S(1)], out=[2]),
        step("comm.all_reduce_start", S(2), axes=["tp"], reduce="sum", out=[3]),
        step("comm.wait", S(3), out=[4]),
    ]
    return infer(code, [(3,)], [4], (("tp", 2),))


def test_a_rank_that_fails_is_named_and_the_session_can_be_used_again() -> None:
    with RankThreads(failing_on_rank_1()) as session:
        for _ in range(2):
            with pytest.raises(RunError) as caught:
                session.forward([], [], [torch.ones(3)])
            assert caught.value.code == "E0320"
            assert "rank 1 failed in instruction 1 (aten.index.Tensor)" in caught.value.message


def test_a_rank_that_never_stops_does_not_hold_the_caller() -> None:
    release = threading.Event()
    with RankThreads(linear(), timeout_s=0.2) as session:
        session._executors[0].forward = lambda inputs: release.wait(30)  # type: ignore[method-assign,assignment,return-value]
        with pytest.raises(RunError) as caught:
            session.forward([torch.ones(4, 3)], [], [torch.ones(5, 4)])
        assert caught.value.code == "E0325"
        assert "rank 0 did not stop" in caught.value.render()
        assert "E0322" in caught.value.render()
        with pytest.raises(RunError) as again:
            session.forward([torch.ones(4, 3)], [], [torch.ones(5, 4)])
        assert again.value.code == "E0325"
        release.set()


def test_ranks_that_wait_for_one_that_has_ended_stop_at_once() -> None:
    with RankThreads(linear(), timeout_s=60.0) as session:
        session._executors[0].forward = lambda inputs: ([], Frame([]))  # type: ignore[method-assign]
        session._executors[0].entry = replace(session._executors[0].entry, outputs=())
        started = time.monotonic()
        with pytest.raises(RunError) as caught:
            session.forward([torch.ones(4, 3)], [], [torch.ones(5, 4)])
        assert caught.value.code == "E0322" and time.monotonic() - started < 30
        assert "for rank 0, which has ended the step without it" in caught.value.message


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_step_stops_all_ranks_and_the_session_can_be_used_again() -> None:
    with RankThreads(linear(), timeout_s=20.0) as session:
        forward = session._executors[1].forward
        gate = threading.Event()

        def late(inputs: object) -> object:
            gate.wait(0.5)
            return forward(inputs)  # type: ignore[arg-type]

        session._executors[1].forward = late  # type: ignore[method-assign,assignment]
        timer = threading.Timer(0.2, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        timer.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            session.forward([torch.ones(4, 3)], [], [torch.ones(5, 4)])
        timer.join()
        assert time.monotonic() - started < 10
        one_step(session, torch.ones(4, 3), torch.ones(5, 4))


def test_a_closed_session_says_so() -> None:
    session = RankThreads(linear())
    session.close()
    session.close()
    with pytest.raises(RunError) as caught:
        session.forward([torch.ones(4, 3)], [], [torch.ones(5, 4)])
    assert caught.value.code == "E0325"


def test_threads_end_when_the_session_is_forgotten() -> None:
    before = rank_threads()
    session = RankThreads(linear())
    one_step(session, torch.ones(4, 3), torch.ones(5, 4))
    assert len(rank_threads() - before) == 2
    del session


def test_sessions_beside_each_other_share_their_threads() -> None:
    before = rank_threads()
    with RankThreads(linear()) as session:
        beside = RankThreads(linear(width=3), beside=session)
        assert len(rank_threads() - before) == 2
        for current, width in ((session, 4), (beside, 3), (session, 4)):
            one_step(current, torch.ones(width, 3), torch.ones(5, width))
    with pytest.raises(RunError):
        one_step(beside, torch.ones(3, 3), torch.ones(5, 3))
    with RankThreads(linear(), beside=session) as session:
        one_step(session, torch.ones(4, 3), torch.ones(5, 4))


def test_the_callers_own_number_of_threads_stays() -> None:
    before = torch.get_num_threads()
    with RankThreads(linear()):
        assert torch.get_num_threads() == before
        seen: list[int] = []
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert seen == [before]


def test_a_forked_child_gets_threads_of_its_own() -> None:
    w, x = torch.randn(4, 3), torch.randn(5, 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's own threads do not survive a fork
    with RankThreads(linear()) as session:
        expected = session.forward([w], [], [x])[0][0].item()
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            os._exit(0 if session.forward([w], [], [x])[0][0].item() == expected else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert session.forward([w], [], [x])[0][0].item() == expected
    torch.set_num_threads(threads)
