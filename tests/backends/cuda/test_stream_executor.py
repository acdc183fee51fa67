"""The issuing code computes what the executor computes, bit by bit, and its log is the one that is recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stretto.backends.cuda.agreement import prove
from stretto.backends.cuda.recording import recorded
from stretto.backends.cuda.stream_executor import StreamExecutor
from stretto.backends.cuda.stream_log import Allocate, Entry, Launch
from stretto.backends.cuda.watchdog import StreamWatchdog
from stretto.runtime.communicator import Communicator
from stretto.runtime.program.arguments import DTYPES
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Input
from stretto.runtime.rank.executor import Executor
from stretto.runtime.rank.shards import local_shape
from torch import Tensor

from ...runtime import lane_module, rotated_module
from ...runtime.grid_program import grid
from ...runtime.implementations.kind_program import kind_program
from ...runtime.pipe_program import Pipe
from ...runtime.tiny_programs import on_ranks

PROGRAMS = {
    "rotated layers": lambda: rotated_module.rotated(4),
    "lanes": lambda: rotated_module.lowered(lane_module.module()),
    "a training step": grid,
    "a pipeline": lambda: Pipe(microbatches=3, dp=2).train(),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_issuing_code_computes_what_the_executor_computes(name: str) -> None:
    program = PROGRAMS[name]()

    def both(communicator: Communicator) -> list[list[Tensor]]:
        executors = Executor(program, communicator), StreamExecutor(program, communicator)
        return [_two_steps(each, program, communicator.rank) for each in executors]

    for plain, streams in on_ranks(program.manifest.mesh, both):
        assert len(plain) == len(streams) > 0
        assert all(torch.equal(a, b) for a, b in zip(plain, streams, strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_issued_is_what_is_recorded(name: str) -> None:
    program = PROGRAMS[name]()

    def issued(communicator: Communicator) -> list[Entry]:
        executor = StreamExecutor(program, communicator)
        _two_steps(executor, program, communicator.rank, steps=1)
        return executor.log

    for rank, log in enumerate(on_ranks(program.manifest.mesh, issued)):
        assert list(map(_placeless, log)) == list(map(_placeless, recorded(program, rank)))


def test_a_kernel_is_one_work_in_place_of_its_function() -> None:
    program = kind_program()
    bodies = [entry.op for entry in recorded(program, 0) if isinstance(entry, Launch)]
    assert bodies == ["aten.mul.Scalar", "aten.add.Scalar", "aten.mul.Scalar"]
    expected = recorded(program, 0, kernels=["scaled"])
    prove([expected])
    assert [entry.op for entry in expected if isinstance(entry, Launch)] == ["call scaled", "aten.mul.Scalar"]

    def issued(communicator: Communicator) -> list[Entry]:
        kernels = {"scaled": lambda x: [x * 2.0 + 1.0]}
        executor = StreamExecutor(program, communicator, kernels=kernels)
        results, _ = executor.forward([torch.ones(2, 3)])
        assert [float(each[0, 0]) for each in results] == [3.0, 9.0]
        return executor.log

    [log] = on_ranks(program.manifest.mesh, issued)
    assert list(map(_placeless, log)) == list(map(_placeless, expected))


class _NeverEnds:
    """An event of work that hangs."""

    def query(self) -> bool:
        return False


def test_a_rank_that_hangs_is_named_with_the_instruction_that_it_issued_first() -> None:
    program = PROGRAMS["lanes"]()

    def late(communicator: Communicator) -> str:
        now = [0.0]
        watchdog = StreamWatchdog(communicator.rank, 5.0, lambda error: None, lambda: now[0])
        executor = StreamExecutor(program, communicator, watch=lambda step: watchdog.watch(step, _NeverEnds()))
        _two_steps(executor, program, communicator.rank, steps=1)
        assert watchdog.look() is None
        now[0] = 6.0
        error = watchdog.look()
        assert error is not None
        return error.message

    for rank, (message, log) in enumerate(
        zip(on_ranks(program.manifest.mesh, late), [recorded(program, each) for each in range(2)], strict=False)
    ):
        first = next(entry for entry in log if isinstance(entry, Launch) and entry.communication is not None)
        function, index = first.path[-1]
        assert message.startswith(f'rank {rank}: instruction {index} ({first.op}) of "{function}" on the stream "')


def _placeless(entry: Entry) -> Entry:
    return replace(entry, address=0) if isinstance(entry, Allocate) else entry


def _two_steps(executor: Executor | StreamExecutor, program: Program, rank: int, steps: int = 2) -> list[Tensor]:
    """Outputs and gradients of two steps, whose forwards both come first."""
    entry = program.entry_of(rank)
    inputs = [_numbers(each, program, rank) for each in entry.forward_inputs]
    results, frames = [], []
    for step in range(steps):
        given, frame = executor.forward([x * (step + 1) if x.is_floating_point() else x for x in inputs])
        results += given
        frames.append(frame)
    tangents = [_numbers(each, program, rank) for each in entry.inputs if each.kind == "tangent"]
    tangents = tangents if entry.stage is None else [torch.tensor(1.5)]
    for frame in frames if entry.gradients else []:
        results += executor.backward(frame, tangents)
    return results


def _numbers(record: Input, program: Program, rank: int) -> Tensor:
    shape = local_shape(record.shape, record.shards)
    random = torch.Generator().manual_seed(len(record.name) + rank * (record.shards != ()))
    return torch.randn(shape, generator=random, dtype=torch.float64).to(DTYPES[record.dtype])
