"""The table of collectives: the dialect, the shapes and the bytes that follow from it."""

import pytest
import torch
from stretto.ir.collectives import (
    COALESCED,
    COLLECTIVES,
    RECEIVE,
    STARTS,
    Collective,
    collective,
    constants_of_part,
    start_of,
    synchronous,
)
from stretto.ir.dialects.schemas import definitions
from stretto.ir.interpreter.collectives import run_collective

CONSTANTS: dict[str, list[object]] = {
    "comm.all_reduce": [["tp"], "sum"],
    "comm.all_gather": [["tp"], 1],
    "comm.reduce_scatter": [["tp"], 0, "sum"],
    "comm.all_to_all": [["tp"], 0, 1],
    "comm.permute": [["tp"], 1],
    "comm.all_reduce_coalesced": [["tp"], "sum"],
    "comm.all_gather_coalesced": [["tp"], [1, 0]],
    "comm.reduce_scatter_coalesced": [["tp"], [0, 0], "sum"],
}
ONE_TENSOR = [each for each in COLLECTIVES.values() if not each.coalesces and not each.counts]


@pytest.mark.parametrize("each", COLLECTIVES.values(), ids=lambda each: each.kind)
def test_both_forms_of_a_collective_are_operations_with_its_constants(each: Collective) -> None:
    for name in (each.name, each.start):
        assert [a.name for a in definitions()[name].arguments] == ["x", *each.arguments]
        assert synchronous(name) == each.name and collective(name) is each
    assert definitions()[each.name].pure and not definitions()[each.start].pure


@pytest.mark.parametrize("each", ONE_TENSOR, ids=lambda each: each.kind)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_shape_is_that_of_what_the_interpreter_gives(each: Collective, ranks: int) -> None:
    constants = CONSTANTS[each.name]
    options = dict(zip(each.arguments, constants, strict=True))
    made = run_collective(each.kind, [torch.zeros(8, 3)] * ranks, options)
    assert {tuple(t.shape) for t in made} == {each.result_shape((8, 3), constants, ranks)}


@pytest.mark.parametrize("each", COALESCED.values(), ids=lambda each: each.kind)
def test_a_bucket_has_the_shapes_that_its_collective_gives_each_tensor(each: Collective) -> None:
    constants, one = CONSTANTS[each.name], COLLECTIVES[each.coalesces]
    shapes = [(8, 3), (4, 5, 2)]
    wanted = [one.result_shape(shape, constants_of_part(constants, i), 4) for i, shape in enumerate(shapes)]
    assert list(each.result_shapes(shapes, constants, 4)) == wanted
    assert list(one.result_shapes(shapes[:1], CONSTANTS[one.name], 4)) == wanted[:1]


def test_an_exchange_of_rows_has_the_shape_of_its_bound() -> None:
    rows = COLLECTIVES["comm.all_to_all_rows"]
    assert rows.counts == ("send_counts", "receive_counts")
    assert rows.result_shape((8, 3), [["tp"], 20, None, None], 4) == (20, 3)


def test_a_dim_that_ranks_do_not_divide_has_no_shape_and_one_that_is_not_there_is_an_error() -> None:
    scatter = COLLECTIVES["comm.reduce_scatter"]
    assert scatter.result_shape((6,), [["tp"], 0, "sum"], 4) is None
    with pytest.raises(IndexError):
        scatter.result_shape((6,), [["tp"], 1, "sum"], 2)


def test_every_blocking_operation_has_an_asynchronous_form() -> None:
    assert {start_of(name) for name in (*COLLECTIVES, RECEIVE)} == STARTS
    assert all(name in definitions() for name in STARTS)
    assert synchronous("aten.mm.default") == "aten.mm.default" and collective("comm.send") is None
