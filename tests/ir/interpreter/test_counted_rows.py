"""`comm.all_to_all_rows` in the interpreter: which rows go where, what stands past them, and what is refused."""

from __future__ import annotations

import pytest
import torch
from stretto.ir.interpreter import InterpreterError, run
from torch import Tensor

from .test_collectives import GROUPS, group, held
from .texts import module

PLACE = '{dp = "shard(0)", tp = "shard(0)"}'


def exchanged(axes: list[str], rows: Tensor, sent: Tensor, received: Tensor, bound: int) -> Tensor:
    """What every rank gets, one in each row of dim 0; rows and counts are given like that."""
    held_type = f"tensor<{rows.shape[1]}x{rows.shape[2]}xf64, {PLACE}>"
    counts = f"tensor<{sent.shape[1]}xi64, {PLACE}>"
    result = f"tensor<{bound}x{rows.shape[2]}xf64, {PLACE}>"
    text = str(axes).replace("'", '"')
    body = f"""
      %0 = "comm.all_to_all_rows"(%a, %s, %r) {{axes = {text}, bound = {bound} : i64}}
        : ({held_type}, {counts}, {counts}) -> {result}
      %1 = "comm.all_to_all_rows_start"(%a, %s, %r) {{axes = {text}, bound = {bound} : i64}}
        : ({held_type}, {counts}, {counts}) -> !async.value<{result}>
      %2 = "comm.wait"(%1) : (!async.value<{result}>) -> {result}
      return %0, %2 : {result}, {result}"""
    text = module(f"%a: {held_type}, %s: {counts}, %r: {counts}", f"{result}, {result}", body)
    now, later = run(text, [rows.flatten(0, 1), sent.flatten(), received.flatten()])
    torch.testing.assert_close(now, later, rtol=0, atol=0, equal_nan=True)
    return now.unflatten(0, (6, bound))


def counts(axes: list[str]) -> tuple[Tensor, Tensor]:
    """The member at i sends (i + 2 j) % 3 rows to the one at j, so none to some."""
    size = len(group(0, axes))
    table = torch.tensor([[(i + 2 * j) % 3 for j in range(size)] for i in range(size)])
    places = [group(rank, axes).index(rank) for rank in range(6)]
    return table[places], table.T[places]


@pytest.mark.parametrize("axes", GROUPS, ids="_".join)
def test_each_member_gets_its_rows_of_every_tensor_and_nan_past_them(axes: list[str]) -> None:
    rows, (sent, received) = held(9, 2), counts(axes)
    built = exchanged(axes, rows, sent, received, 8)
    for rank in range(6):
        members = group(rank, axes)
        mine = members.index(rank)
        came = torch.cat([rows[r].split([*sent[r].tolist(), 9 - int(sent[r].sum())])[mine] for r in members])
        assert torch.equal(built[rank, : len(came)], came) and len(came) == received[rank].sum()
        assert built[rank, len(came) :].isnan().all()


def test_an_exchange_back_gives_each_row_to_the_one_who_sent_it() -> None:
    rows, (sent, received) = held(9, 2), counts(["tp", "dp"])
    there = exchanged(["tp", "dp"], rows, sent, received, 12)
    back = exchanged(["tp", "dp"], there, received, sent, 9)
    for rank in range(6):
        count = int(sent[rank].sum())
        assert torch.equal(back[rank, :count], rows[rank, :count])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda sent, received: received[0].add_(5), "receives .* its bound is 8"),
        (lambda sent, received: sent[0].add_(9), "sends .* rows and has 9"),
        (lambda sent, received: received[1, 0].sub_(3), "a negative count"),
        (lambda sent, received: received[0, 1].add_(1), "member 1 sends . rows to member 0, which receives"),
    ],
)
def test_counts_that_do_not_fit_stop_the_run(change: object, says: str) -> None:
    sent, received = counts(["tp"])
    sent, received = sent.clone(), received.clone()
    change(sent, received)  # type: ignore[operator]
    with pytest.raises(InterpreterError, match=says):
        exchanged(["tp"], held(9, 2), sent, received, 8)
