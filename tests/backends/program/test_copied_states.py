"""What is said of a state that a step does not write in place."""

from __future__ import annotations

from stretto.backends.program.copied_states import copied_states
from stretto.backends.program.write_into_states import write_into_states
from stretto.runtime.program.program import Manifest, Program
from stretto.runtime.program.records import Function, Input, Instruction, Output, Shard
from stretto.runtime.prover import with_derived_types

from ...runtime.prover.programs import PAIR, PLACES, S, step, wait


def stateful(mode: str, layer: list[Instruction], new: int) -> Program:
    """Two layers, each of which makes a new value of a state."""
    called = Function(8, (0, 1), (new,), tuple(layer))
    code = tuple(step("call", "layer", [S(index), S(2)], out=[3 + index], loc=0) for index in range(2))
    part = (Shard(0, ("tp",), 2, 4),)
    states = [Input(f"layers.{index}.keys", "state", (4, 4), "float32", index) for index in range(2)]
    x = Input("x", "input", (4, 4), "float32", 2, part, index=0)
    results = [Output(f"layers.{index}.keys", "state", (4, 4), "float32", 3 + index) for index in range(2)]
    functions = {"main": Function(5, (0, 1, 2), (3, 4), code), "layer": called}
    program = Program(Manifest(mode, "float32", PAIR), (*states, x), tuple(results), functions, PLACES)
    return write_into_states(with_derived_types(program))


def shard(state: int, out: int) -> Instruction:
    return step("rank.shard", S(state), out=[out], axes=["tp"], dim=0, chunk=2)


def test_a_state_that_is_written_in_place_through_a_call_is_not_named() -> None:
    gathered = step("comm.all_gather_start", S(1), out=[3], axes=["tp"], dim=0)
    code = [gathered, wait(3, 4), step("aten.add.Tensor", S(0), S(4), out=[5])]
    assert copied_states(stateful("infer", code, 5)) == []


def test_states_that_are_gathered_are_named_once_with_the_statement_that_ends_it() -> None:
    gathered = step("comm.all_gather_start", S(5), out=[6], axes=["tp"], dim=0)
    code = [shard(0, 4), step("aten.add.Tensor", S(4), S(1), out=[5]), gathered, wait(6, 7)]
    [text] = copied_states(stateful("infer", code, 7))
    assert text.startswith('state "layers.*.keys" is gathered at each step')
    assert text.endswith('shard buffers "layers.*.keys" dim 0 over tp')
    assert copied_states(stateful("train", code, 7)) == []


def test_states_whose_old_values_are_read_later_are_named() -> None:
    gathered = step("comm.all_gather_start", S(1), out=[2], axes=["tp"], dim=0)
    code = [gathered, wait(2, 3), step("aten.add.Tensor", S(0), S(3), out=[4])]
    code += [step("aten.mul.Tensor", S(0), S(4), out=[5])]
    [text] = copied_states(stateful("infer", code, 4))
    assert text.startswith('state "layers.*.keys" is copied at each step')
