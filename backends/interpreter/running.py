"""Run a program on all ranks, in turn: each goes on until it waits for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...ir.interpreter.errors import DEADLOCK, INPUTS, DeadlockError, InterpreterError
from ...ir.interpreter.evaluate import Evaluator
from ...ir.interpreter.exchange import Exchange
from ...ir.interpreter.padding import Padding
from ...ir.interpreter.transfers import RECEIVE_HELP, PendingReceive, Transfers
from ...ir.module import Level
from .program_records import ProgramRecords
from .rank import Rank, Waiting
from .tensors import FLOATS, joined, local_input

Key = tuple[str, str]
"""(kind, name) of an input."""


def run_program(program: ProgramRecords, inputs: Mapping[Key, Tensor]) -> list[Tensor]:
    """The global results of a program in float64, in the order of its outputs; `inputs` are global.

    In a pipeline a gradient is the one for the given tangent. Errors: InterpreterError E0651 to E0664, DeadlockError
    among them.
    """
    grid = program.grid
    evaluator, exchange = Evaluator(grid, Level.COMM, FLOATS, Padding.NAN), Exchange(grid)
    transfers = Transfers(grid)
    ranks = [Rank(rank, program, evaluator, exchange, transfers) for rank in range(grid.ranks)]
    with torch.no_grad(), FLOATS.defaults():
        _take_turns(ranks, [_begin(rank, inputs) for rank in ranks])
        transfers.check_taken()
        return [
            joined(output, {r.rank: r.results[index] for r in ranks if r.results and index in r.results}, grid)
            for index, output in enumerate(program.outputs)
        ]


def _begin(rank: Rank, inputs: Mapping[Key, Tensor]) -> Waiting:
    """The run of one rank. In a pipeline the entry takes the tangent; elsewhere the backward does."""
    entry = rank.program.entry_of(rank.rank)
    early: dict[int, Tensor] = {}
    late: dict[int, Tensor] = {}
    for record, slot in entry.inputs:
        key = (record.kind, record.name)
        if key not in inputs:
            raise InterpreterError(INPUTS, f'the program takes {record.kind} "{record.name}", but none is given')
        is_late = record.kind == "tangent" and rank.program.pipeline is None
        (late if is_late else early)[slot] = local_input(record, inputs[key], rank.rank, rank.program.grid)
    return rank.run(early, late)


def _take_turns(ranks: Sequence[Rank], runs: Sequence[Waiting]) -> None:
    """Advance every rank as far as it can until all are done; DeadlockError E0657 if none can advance."""
    remaining = list(zip(ranks, runs, strict=True))
    while remaining:
        ready = [(rank, run) for rank, run in remaining if rank.waiting is None or rank.waiting.is_ready]
        if not ready:
            raise _deadlock(ranks)
        for _, run in ready:
            next(run, None)
        remaining = [(rank, run) for rank, run in remaining if rank.results is None]


def _deadlock(ranks: Sequence[Rank]) -> DeadlockError:
    stuck = tuple(rank.stuck() for rank in ranks if rank.results is None)
    finished = tuple(rank.rank for rank in ranks if rank.results is not None)
    message = "ranks wait for each other for ever"
    if any(isinstance(rank.waiting, PendingReceive) for rank in ranks):
        return DeadlockError(DEADLOCK, message, stuck, finished=finished, help=RECEIVE_HELP)
    return DeadlockError(DEADLOCK, message, stuck, finished=finished)
