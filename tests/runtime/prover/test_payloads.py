"""Messages have identity: sends, payloads and receives that are exchanged are refused although their shapes fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import pytest
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Instruction
from stretto.runtime.prover import prove
from stretto.runtime.prover.payloads import check_payloads
from stretto.runtime.prover.values import Refuted

from .test_compiled import compiled

PLANS = {
    "1f1b": "mesh (pp=2)\npipeline over pp { schedule 1f1b  microbatches 2 }",
    "overlapped pairs": "mesh (pp=2, tp=2)\n"
    'shard "*.{q,k,v}_proj", "*.up" columns over tp\nshard "*.o_proj", "*.down" rows over tp\n'
    "pipeline over pp { schedule dualpipe-v  microbatches 4 }",
    "shared vocabulary": 'mesh (pp=2)\nshard "wte" vocab over pp\npipeline over pp { schedule 1f1b  microbatches 2 }',
}
Sides = list[tuple[str, int, Instruction]]


def changed(program: Program, changes: dict[tuple[str, int], Instruction]) -> Program:
    functions = dict(program.functions)
    for (name, index), instruction in changes.items():
        code = list(functions[name].code)
        code[index] = instruction
        functions[name] = replace(functions[name], code=tuple(code))
    return replace(program, functions=functions)


def sides(program: Program, op: str) -> Iterator[Sides]:
    """The sends, or the receives, of each entry."""
    for entry in program.entries:
        code = program.functions[entry.name].code
        yield [(entry.name, index, one) for index, one in enumerate(code) if one.op == op]


def code_of(program: Program) -> str:
    verdict = prove(program)
    return verdict.counterexample.code if verdict.counterexample else "safe"


@pytest.mark.parametrize("plan", PLANS)
def test_what_the_compiler_sends_is_safe_and_named_at_both_ends(plan: str) -> None:
    program = compiled(PLANS[plan])
    assert code_of(program) == "safe"
    sends, receives = (
        [one for side in sides(program, op) for one in side] for op in ("comm.send", "comm.receive_start")
    )
    assert len(sends) == len(receives) > 2
    assert all({"carries", "made_by"} <= one.kwargs.keys() for _, _, one in sends)
    assert sorted(str(one.kwargs["carries"]) for _, _, one in sends) == sorted(
        str(one.kwargs["carries"]) for _, _, one in receives
    )


@pytest.mark.parametrize("plan", PLANS)
def test_two_sends_whose_payloads_are_exchanged_are_refused(plan: str) -> None:
    """All pairs of sends of a stage, of whatever shapes: this check comes before shapes are looked at."""
    program, tried = compiled(PLANS[plan]), 0
    for side in sides(program, "comm.send"):
        for (name, i, a), (_, j, b) in combinations(side, 2):
            exchanged = {(name, i): replace(a, args=b.args), (name, j): replace(b, args=a.args)}
            if a.kwargs["made_by"] != b.kwargs["made_by"]:
                assert is_refused(changed(program, exchanged)), (name, i, j)
                tried += 1
    assert tried > 2


def is_refused(program: Program) -> bool:
    try:
        check_payloads(program)
    except Refuted as refuted:
        return refuted.code == "E0727"
    except KeyError:  # what is sent is not made yet: the check of slots, which comes before, refuses it
        return True
    return False


def test_a_proof_names_the_send_whose_payload_is_exchanged() -> None:
    """The last two sends of the first stage, with all that they send kept to the end."""
    program = compiled(PLANS["1f1b"])
    (name, _, a), (_, j, b) = next(sides(program, "comm.send"))[-2:]
    kept = {slot for one in (a, b) for slot in one.reads()}
    code = [replace(one, free=tuple(set(one.free) - kept)) for one in program.functions[name].code]
    code[j] = replace(code[j], args=a.args)
    one = replace(program, functions={**program.functions, name: replace(program.functions[name], code=tuple(code))})
    verdict = prove(one)
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0727"
    assert (verdict.counterexample.places[0].function, verdict.counterexample.places[0].index) == (name, j)
    assert f"is to carry '{b.kwargs['carries']}'" in verdict.render()


@pytest.mark.parametrize("op", ["comm.send", "comm.receive_start"])
def test_two_messages_of_one_shape_in_another_order_are_refused(op: str) -> None:
    """Names move with the instructions, so that shapes fit where the names do not."""
    program = compiled(PLANS["1f1b"])
    (name, i, a), (_, j, b) = next(
        (one, other)
        for side in sides(program, op)
        for one, other in combinations(side, 2)
        if "@0" in str(one[2].kwargs["carries"]) and "@1" in str(other[2].kwargs["carries"])
    )
    verdict = prove(changed(program, {(name, i): exchanged(a, b), (name, j): exchanged(b, a)}))
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0727", verdict.render()


def exchanged(one: Instruction, other: Instruction) -> Instruction:
    """An instruction that carries what another did."""
    return replace(one, kwargs={**one.kwargs, "carries": other.kwargs["carries"]})


def test_a_message_that_a_stage_sends_to_itself_is_refused() -> None:
    program = compiled(PLANS["1f1b"])
    for op in ("comm.send", "comm.receive_start"):
        name, index, one = next(sides(program, op))[0]
        verdict = prove(changed(program, {(name, index): replace(one, kwargs={**one.kwargs, "peer": 0})}))
        assert verdict.counterexample is not None and verdict.counterexample.code == "E0727"
        assert "stage 0" in verdict.render() and "itself" in verdict.render()


def test_a_message_that_only_one_end_names_is_refused() -> None:
    program = compiled(PLANS["1f1b"])
    name, index, one = next(sides(program, "comm.receive_start"))[0]
    unnamed = replace(one, kwargs={key: value for key, value in one.kwargs.items() if key != "carries"})
    verdict = prove(changed(program, {(name, index): unnamed}))
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0727"
    assert "received as a tensor without a name" in verdict.render()


def test_a_program_from_before_messages_had_names_is_proved_by_shapes() -> None:
    program = compiled(PLANS["1f1b"])
    names = ("carries", "made_by")
    changes = {
        (name, index): replace(one, kwargs={key: value for key, value in one.kwargs.items() if key not in names})
        for op in ("comm.send", "comm.receive_start")
        for side in sides(program, op)
        for name, index, one in side
    }
    assert code_of(changed(program, changes)) == "safe"
