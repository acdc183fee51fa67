"""Defects between ranks: collectives that differ or are missing, cycles over two groups, memory over the cap."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from stretto.runtime.errors import ProgramError
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Function
from stretto.runtime.prover import RankClass, Verdict, prove, prove_ranks

from .programs import SQUARE, S, layered, program, reduce, relu, step, wait


def on_two(first: Program, second: Program) -> Verdict:
    """Rank 0 runs the first, rank 1 the second."""
    return prove_ranks([RankClass(first, (0,)), RankClass(second, (1,))])


def places(verdict: Verdict) -> list[tuple[tuple[int, ...], str, int]]:
    assert verdict.counterexample is not None, verdict.render()
    return [(place.ranks, place.function, place.index) for place in verdict.counterexample.places]


def reduced(**options: object) -> Program:
    return program(reduce(0, 1, **options), wait(1, 2), result=2)  # type: ignore[arg-type]


TALL = program(step("aten.slice.Tensor", S(0), 0, 0, 2, out=[3]), reduce(3, 1), wait(1, 2), result=2)
SCATTER = step("comm.reduce_scatter_start", S(0), axes=["tp"], dim=0, reduce="sum", out=[1])
FORTH, BACK = (step("comm.permute_start", S(0), axes=["tp"], shift=shift, out=[1]) for shift in (1, -1))
GATHER_0, GATHER_1 = (step("comm.all_gather_start", S(0), axes=["tp"], dim=dim, out=[1], loc=0) for dim in (0, 1))


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (reduced(), reduced(reduce="max"), "its reduce is sum here and max there"),
        (reduced(), program(SCATTER, wait(1, 2), result=2), "its op is comm.all_reduce here and comm.reduce_scatter"),
        (reduced(), TALL, "its shape is [4, 4] here and [2, 4] there"),
        (
            program(GATHER_0, wait(1, 2), result=2),
            program(GATHER_1, wait(1, 2), result=2),
            "its dim is 0 here and 1 there",
        ),
        (
            program(FORTH, wait(1, 2), result=2),
            program(BACK, wait(1, 2), result=2),
            "its shift is 1 here and -1 there",
        ),
    ],
)
def test_two_ranks_that_differ_in_a_collective_are_named(first: Program, second: Program, what: str) -> None:
    verdict = on_two(first, second)
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0710"
    assert what in verdict.counterexample.message
    assert [(ranks, name) for ranks, name, _ in places(verdict)] == [((0,), "main"), ((1,), "main")]


def test_two_dtypes_in_one_collective_are_found() -> None:
    cast = step("aten._to_copy.default", S(0), dtype=torch.float64, out=[3])
    verdict = on_two(reduced(), program(cast, reduce(3, 1), wait(1, 2), result=2))
    assert "its dtype is float32 here and float64 there" in verdict.render()


def test_collectives_swapped_on_one_rank_are_found() -> None:
    plain = program(reduce(0, 1), reduce(0, 2, reduce="max"), wait(1, 3), wait(2, 4), result=4)
    swapped = program(reduce(0, 2, reduce="max"), reduce(0, 1), wait(1, 3), wait(2, 4), result=4)
    verdict = on_two(plain, swapped)
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0710"
    assert places(verdict) == [((0,), "main", 0), ((1,), "main", 0)]


def test_collectives_swapped_on_one_rank_are_found_even_where_their_shapes_fit() -> None:
    both = (relu(0, 1), step("aten.neg.default", S(0), out=[2]))
    waits = (wait(3, 5), wait(4, 6), step("aten.sub.Tensor", S(5), S(6), out=[7]))
    plain = program(*both, reduce(1, 3), reduce(2, 4), *waits, result=7)
    swapped = program(*both, reduce(2, 4), reduce(1, 3), *waits, result=7)
    verdict = on_two(plain, swapped)
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0717"
    assert places(verdict) == [((0,), "main", 2), ((1,), "main", 3)]
    assert on_two(plain, replace(plain, ir="other text")).safe


def test_a_collective_missing_on_one_rank_is_found() -> None:
    twice = program(reduce(0, 1), wait(1, 2), reduce(2, 3), wait(3, 4), result=4)
    verdict = on_two(twice, reduced())
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0711"
    assert places(verdict) == [((0,), "main", 2), ((1,), "main", 0)]
    assert "rank 1 never starts" in verdict.render()
    never = on_two(program(relu(0, 1), result=1), reduced())
    assert never.counterexample is not None and never.counterexample.code == "E0711"
    assert places(never) == [((1,), "main", 0), ((0,), "main", 0)]


def test_a_collective_missing_among_equal_ones_is_found_by_its_source() -> None:
    starts = [replace(reduce(0, index), loc=loc) for index, loc in ((1, 0), (3, 1), (5, 2))]
    waits = [wait(1, 2), wait(3, 4), wait(5, 6)]
    verdict = on_two(program(*starts, *waits, result=6), program(starts[0], starts[2], waits[0], waits[2], result=6))
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0711"
    assert places(verdict) == [((0,), "main", 1), ((1,), "main", 1)]


def test_collectives_over_other_axes_on_one_rank_are_missing_in_a_group() -> None:
    over = [program(reduce(0, 1, axes), wait(1, 2), result=2, mesh=SQUARE) for axes in ("tp", "dp")]
    verdict = prove_ranks([RankClass(over[0], (0, 1, 2)), RankClass(over[1], (3,))])
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0711"


def test_a_rank_in_the_last_group_only_is_compared_with_its_own_group() -> None:
    with_dp = program(reduce(0, 1, "dp"), wait(1, 2), result=2, mesh=SQUARE)
    without = program(relu(0, 2), result=2, mesh=SQUARE)
    assert prove_ranks([RankClass(with_dp, (0, 2)), RankClass(without, (1, 3))]).safe
    verdict = prove_ranks([RankClass(with_dp, (0, 1)), RankClass(without, (2, 3))])
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0711"


def test_a_cycle_across_two_groups_is_found_and_named() -> None:
    first = program(reduce(0, 1, "tp"), wait(1, 2), reduce(0, 3, "dp tp"), wait(3, 4), result=4, mesh=SQUARE)
    second = program(reduce(0, 3, "dp tp"), wait(3, 4), reduce(0, 1, "tp"), wait(1, 2), result=4, mesh=SQUARE)
    verdict = prove_ranks([RankClass(first, (0, 2)), RankClass(second, (1, 3))])
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0712"
    assert sorted(places(verdict)) == [((0,), "main", 0), ((1,), "main", 0)]
    assert "starts what another rank needs only later" in verdict.render()
    assert prove_ranks([RankClass(first, (0, 2)), RankClass(first, (1, 3))]).safe


def test_a_cycle_among_kinds_of_ranks_that_is_none_among_ranks_is_no_deadlock() -> None:
    """Ranks 0, 1 and 2, 3 meet over tp; the first pair before, the second after all meet over dp and tp."""
    early = program(reduce(0, 1, "tp"), wait(1, 2), reduce(0, 3, "dp tp"), wait(3, 4), result=4, mesh=SQUARE)
    late = program(reduce(0, 3, "dp tp"), wait(3, 4), reduce(0, 1, "tp"), wait(1, 2), result=4, mesh=SQUARE)
    assert prove_ranks([RankClass(early, (0, 1)), RankClass(late, (2, 3))]).safe


def test_axes_of_size_one_make_no_group_of_their_own() -> None:
    mesh = (("pod", 1), ("tp", 2))
    first = program(reduce(0, 1, "pod tp"), wait(1, 2), result=2, mesh=mesh)
    second = program(reduce(0, 1, "tp"), wait(1, 2), result=2, mesh=mesh)
    alone = program(reduce(0, 1, "pod"), wait(1, 2), result=2, mesh=mesh)
    assert on_two(first, second).safe
    assert on_two(alone, program(relu(0, 2), result=2, mesh=mesh)).safe


def test_a_rank_that_is_in_no_class_or_in_two_is_refused() -> None:
    for ranks in [(0,), (0, 1, 1), (0, 2)]:
        with pytest.raises(ProgramError, match="E0715"):
            prove_ranks([RankClass(reduced(), ranks)])
    with pytest.raises(ProgramError, match="E0715"):
        prove_ranks([RankClass(reduced(), (0,)), RankClass(program(relu(0, 1), result=1, mesh=SQUARE), (1, 2, 3))])


def test_the_peak_counts_inputs_results_and_what_a_collective_still_reads() -> None:
    """x, relu(x) and the sum of 64 bytes each: three are live while the collective runs."""
    one = program(relu(0, 1), reduce(1, 2, free=[1]), wait(2, 3), result=3)
    verdict = prove(one, memory_cap_bytes=192)
    assert verdict.safe and verdict.peak_bytes == 192
    assert verdict.render().splitlines()[0] == "safe: 2 ranks (1 distinct), 1 collectives on a rank"
    assert verdict.to_json()["peak_bytes"] == 192
    peak = verdict.peaks[0].place
    assert peak is not None and (peak.function, peak.index) == ("main", 1)


def test_views_take_no_memory() -> None:
    view = step("aten.transpose.int", S(0), 0, 1, out=[1])
    assert prove(program(view, result=1)).peak_bytes == 64


def test_a_callee_frees_what_its_caller_has_let_go_of() -> None:
    """Freed before the call, slot 1 is gone when the body makes its third tensor; else it is still there."""
    body = {"body": Function(4, (0,), (3,), (relu(0, 1, [0]), relu(1, 2, [1]), relu(2, 3, [2])))}
    for free, peak in ([1], 192), ([], 256):
        call = step("call", "body", [S(1)], out=[2], free=free)
        assert prove(program(relu(0, 1), call, result=2, functions=body)).peak_bytes == peak


def test_memory_over_the_cap_names_the_peak_and_the_largest_tensor() -> None:
    wide = step("aten.expand.default", S(0), [8, 4, 4], out=[1])
    one = program(wide, step("aten.clone.default", S(1), out=[2], loc=1), relu(0, 3), result=3)
    verdict = prove(one, memory_cap_bytes=600)
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0713"
    assert [index for _, _, index in places(verdict)] == [2, 1]
    assert "640 bytes, but the cap is 600" in verdict.render()


def test_sixty_four_distinct_ranks_of_thirty_two_layers_are_proved_in_seconds() -> None:
    mesh = (("dp", 8), ("tp", 8))
    classes = [RankClass(layered(32, rank, mesh), (rank,)) for rank in range(64)]
    begun = time.process_time()
    verdict = prove_ranks(classes)
    assert verdict.safe and verdict.collectives == 32 * 8
    assert time.process_time() - begun < 10


def test_unfolded_layers_of_distinct_ranks_cost_no_more_than_their_instructions() -> None:
    """Sixteen ranks of 32 layers, each layer a function of its own: 16 x 32 x 41 instructions."""
    mesh = (("dp", 8), ("tp", 2))
    one = layered(1, 0, mesh)
    body, call = one.functions["layers_forward"], one.functions["main"].code[1]
    functions = {f"layer_{index}": body for index in range(32)}
    calls = tuple(replace(call, args=(name, call.args[1]), out=(2,)) for name in functions)
    main = replace(one.functions["main"], code=(one.functions["main"].code[0], *calls))
    unfolded = replace(one, functions={"main": main, **functions})
    begun = time.process_time()
    assert prove_ranks([RankClass(unfolded, (rank,)) for rank in range(16)]).safe
    assert time.process_time() - begun < 10
