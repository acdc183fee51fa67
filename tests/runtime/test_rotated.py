"""Futures across functions: what one layer's body starts, the next one's waits for, in everything that runs it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stretto.backends.interpreter import run_program
from stretto.driver.check.lowering_check import compare_with_module, records_of, records_of_program
from stretto.ir.interpreter import run
from stretto.ir.module import Module
from stretto.ir.verifier import verify
from stretto.passes.layers.unfold_layers import unfold
from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Instruction
from stretto.runtime.prover import prove
from stretto.runtime.threads.session import RankThreads, Replicas

from .rotated_module import expected, lowered, rotated, staged, tensors, text


@pytest.mark.parametrize("layers", [2, 5])
def test_a_rotated_module_gives_the_same_in_both_interpreters_and_on_threads(layers: int) -> None:
    module = Module.parse(text(layers))
    verify(module)
    given = tensors(layers)
    wanted = expected(given)
    torch.testing.assert_close(run(module, given)[0], wanted)
    assert compare_with_module(module, records_of(module), 0, {}, 1e-12, None).is_equal
    with RankThreads(rotated(layers), replicas=Replicas.CHECK) as session:
        (found,), _ = session.forward(given[1:], [], given[:1])
    torch.testing.assert_close(found, wanted)


def test_its_proof_follows_futures_through_calls_and_has_the_peak_of_the_module_written_out() -> None:
    verdict = prove(rotated(5))
    assert verdict.safe and verdict.collectives == 10
    flat = Module.parse(text(5))
    assert unfold(flat)
    assert prove(lowered(flat)).peak_bytes == verdict.peak_bytes
    assert len(rotated(9).functions) == len(rotated(5).functions)


def test_a_future_that_a_body_never_waits_for_is_found_at_its_start_two_functions_away() -> None:
    """The body computes with the stored weight of the next layer instead of the gathered one of its own."""
    program = rotated(4)
    body = program.functions["body"]
    wait = next(
        i for i, step in enumerate(body.code) if step.op == "comm.wait" and step.args == (Slot(body.arguments[1]),)
    )
    [gathered] = body.code[wait].writes()
    other = Instruction("aten.new_zeros.default", (Slot(body.arguments[2]), [4, 8]), {}, (gathered,))
    code = [replace(step, free=()) for step in body.code]
    code[wait] = other
    broken = replace(program, functions={**program.functions, "body": replace(body, code=tuple(code))})
    counterexample = prove(broken).counterexample
    assert counterexample is not None and counterexample.code == "E0705"
    assert [(place.function, place.op) for place in counterexample.places] == [
        ("main", "call"),
        ("main", "comm.all_gather_start"),
    ]
    assert [place.location.line for place in counterexample.places if place.location] == [21, 2]


def test_a_task_waits_inside_for_a_receive_that_started_before_it() -> None:
    module = staged()
    verify(module)
    x = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(run(module, [x])[0], -2 * x)
    program: Program = lowered(module)
    assert prove(program).safe
    torch.testing.assert_close(run_program(records_of_program(program), {("input", "x"): x})[0], -2 * x)
    with RankThreads(program) as session:
        (found,), _ = session.forward([], [], [x])
    torch.testing.assert_close(found, -2 * x)
