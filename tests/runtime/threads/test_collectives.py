"""Collectives between rank threads: their meaning on groups of all kinds, and how they end when a rank fails."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
import torch
from stretto.runtime import CollectiveError, PeerFailed, RankGroup, RankMesh, RunError
from stretto.runtime.communicator import Communicator
from stretto.runtime.counted_rows import checked_counts
from torch import Tensor

from ..tiny_programs import numbers, on_ranks

MESHES = [(("dp", 2), ("tp", 2)), (("dp", 2), ("tp", 4)), (("pp", 2), ("dp", 2), ("tp", 2))]
CASES = [
    (mesh, axes)
    for mesh in MESHES
    for count in range(len(mesh) + 1)
    for axes in itertools.permutations([name for name, _ in mesh], count)
]


def contribution(rank: int) -> Tensor:
    return torch.randn(8, 8, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


@pytest.mark.parametrize(("mesh", "axes"), CASES)
def test_collectives_mean_what_the_contract_says_on_every_group(
    mesh: tuple[tuple[str, int], ...], axes: tuple[str, ...]
) -> None:
    topology = RankMesh(mesh)

    def job(communicator: Communicator) -> None:
        members = topology.group(communicator.rank, axes)
        assert members[communicator.coordinate(axes)] == communicator.rank
        size, mine = communicator.size(axes), communicator.coordinate(axes)
        all_of_them = [contribution(rank) for rank in members]
        total, own = sum(all_of_them[1:], all_of_them[0]), contribution(communicator.rank)
        handles = [
            communicator.all_reduce_start(own, axes, "sum"),
            communicator.all_reduce_start(own, axes, "max"),
            communicator.all_reduce_start(own, axes, "min"),
            communicator.all_gather_start(own, axes, 1),
            communicator.reduce_scatter_start(own, axes, 0, "sum"),
            communicator.all_to_all_start(own, axes, 0, 1),
        ]
        passed = {shift: communicator.permute_start(own, axes, shift) for shift in (-1, 0, 1, 2, 9)}
        for shift, handle in reversed(passed.items()):
            assert torch.equal(handle.wait(), all_of_them[(mine - shift) % size])
        summed, largest, smallest, gathered, scattered, exchanged = [handle.wait() for handle in reversed(handles)][
            ::-1
        ]
        assert torch.equal(summed, total)
        assert torch.equal(largest, torch.stack(all_of_them).amax(0))
        assert torch.equal(smallest, torch.stack(all_of_them).amin(0))
        assert torch.equal(gathered, torch.cat(all_of_them, 1))
        assert torch.equal(scattered, total.chunk(size, 0)[mine])
        assert torch.equal(exchanged, torch.cat([tensor.chunk(size, 0)[mine] for tensor in all_of_them], 1))
        assert torch.equal(own, contribution(communicator.rank))

    on_ranks(mesh, job)


def test_sums_have_the_same_bits_on_all_ranks_whoever_comes_last() -> None:
    values = [torch.full((1,), value) for value in (1e8, 1.0, -1e8, 1.0)]

    def job(communicator: Communicator) -> float:
        time.sleep(0.002 * ((communicator.rank * 7) % 4))
        return float(communicator.all_reduce_start(values[communicator.rank], ("tp",), "sum").wait())

    in_order = float(((values[0] + values[1]) + values[2]) + values[3])
    for _ in range(3):
        assert on_ranks((("tp", 4),), job) == [in_order] * 4


@pytest.mark.parametrize("axes", [("dp",), ("tp", "dp")])
def test_rows_go_to_the_members_that_the_counts_say(axes: tuple[str, ...]) -> None:
    topology = RankMesh(MESHES[0])

    def job(communicator: Communicator) -> None:
        mine, size = communicator.coordinate(axes), communicator.size(axes)
        counts = [[(i + 2 * j) % 3 for j in range(size)] for i in range(size)]
        sent, received = torch.tensor(counts[mine]), torch.tensor([row[mine] for row in counts])
        handle = communicator.all_to_all_rows_start(contribution(communicator.rank), axes, 9, sent, received)
        members = topology.group(communicator.rank, axes)
        parts = [contribution(r).split([*row, 8 - sum(row)])[mine] for r, row in zip(members, counts, strict=True)]
        assert torch.equal(handle.wait()[: int(received.sum())], torch.cat(parts))
        back = communicator.all_to_all_rows_start(handle.wait(), axes, 8, received, sent).wait()
        assert torch.equal(back[: int(sent.sum())], contribution(communicator.rank)[: int(sent.sum())])

    on_ranks(MESHES[0], job)


def test_more_rows_than_the_bound_stop_all_ranks_and_the_error_names_the_one_that_gets_them() -> None:
    def job(communicator: Communicator) -> None:
        sent, received = torch.tensor([[3, 1], [2, 1]])[communicator.rank], torch.tensor([[3, 2], [1, 1]])
        communicator.all_to_all_rows_start(
            torch.ones(4, 2), ("tp",), 4, sent, received[communicator.rank], "experts of layers.3"
        ).wait()

    first, second = outcomes(2, job, 5.0)
    assert isinstance(first, RunError) and first.code == "E0338"
    assert "rank 0: experts of layers.3: 5 rows come, and the bound is 4" in str(first)
    assert second is not None


@pytest.mark.parametrize(
    ("rows", "bound", "sent", "received", "help"),
    [
        (4, 6, [2, 2], [4, 3], "state a larger bound for these experts, up to 2"),
        (4, 8, [2, 2], [4, 5], "an error in the program"),
        (8, 4, [2, 2], [4, 1], "an error in the program"),
        (4, 6, [3, 2], [1, 1], "an error in the program"),
        (4, 6, [-1, 2], [1, 1], "an error in the program"),
    ],
    ids=["a bound of 1.5", "room for all", "on the way back", "more than there are", "negative"],
)
def test_a_larger_bound_is_the_advice_where_a_bound_is_what_is_too_small(
    rows: int, bound: int, sent: list[int], received: list[int], help: str
) -> None:
    with pytest.raises(RunError) as caught:
        checked_counts(torch.ones(rows, 2), bound, torch.tensor(sent), torch.tensor(received), 0, "experts")
    assert help in str(caught.value)


def test_a_start_does_not_wait() -> None:
    group = RankGroup(RankMesh((("tp", 2),)), 5.0)
    first = group.communicator(0).all_reduce_start(torch.ones(1), ("tp",), "sum")
    second = group.communicator(1).all_reduce_start(torch.ones(1), ("tp",), "sum")
    assert float(first.wait()) == float(second.wait()) == 2.0


def outcomes(size: int, job: object, timeout_s: float) -> list[BaseException | None]:
    """What every rank raises; unlike a session, which raises the first."""
    group = RankGroup(RankMesh((("tp", size),)), timeout_s)
    results: list[BaseException | None] = [None] * size

    def run(rank: int) -> None:
        try:
            job(group.communicator(rank))  # type: ignore[operator]
        except (RunError, ZeroDivisionError) as error:
            results[rank] = error
            group.abort(rank, error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda c: c.all_reduce_start(torch.ones(3), ("tp",), "sum", "here"), "the shape"),
        (lambda c: c.all_reduce_start(torch.ones(2).double(), ("tp",), "sum", "here"), "the dtype"),
        (lambda c: c.all_reduce_start(torch.ones(2), ("tp",), "max", "here"), "reduce"),
        (lambda c: c.all_gather_start(torch.ones(2), ("tp",), 0, "here"), "the op"),
    ],
)
def test_ranks_that_differ_all_hear_which_ranks_where_and_in_what(other: object, message: str) -> None:
    def job(communicator: Communicator) -> None:
        if communicator.rank == 2:
            other(communicator).wait()  # type: ignore[operator]
        else:
            communicator.all_reduce_start(torch.ones(2), ("tp",), "sum", f"there {communicator.rank}").wait()

    errors = outcomes(3, job, 10.0)
    for error in errors:
        assert isinstance(error, CollectiveError)
        assert error.code == "E0321"
        assert message in error.message
        assert "2" in error.message
        assert "here" in error.render()
        assert "there" in error.render()


def test_a_rank_that_does_not_come_is_named_with_what_was_awaited_and_where_it_was() -> None:
    def job(communicator: Communicator) -> None:
        communicator.all_reduce_start(torch.ones(1), ("tp",), "sum", "the first").wait()
        if communicator.rank != 1:
            communicator.all_reduce_start(torch.ones(1), ("tp",), "sum", "the second").wait()

    started = time.monotonic()
    errors = outcomes(3, job, 0.3)
    assert time.monotonic() - started < 5
    assert errors[1] is None
    for error in (errors[0], errors[2]):
        assert isinstance(error, CollectiveError)
        assert error.code == "E0322"
        assert "0.3 s in the second for rank 1" in error.message
        assert "rank 1 last started the first" in error.render()


def test_a_rank_that_fails_wakes_all_others_at_once() -> None:
    def job(communicator: Communicator) -> None:
        if communicator.rank == 1:
            time.sleep(0.1)
            raise ZeroDivisionError("of my own")
        communicator.all_reduce_start(torch.ones(1), ("tp",), "sum").wait()

    started = time.monotonic()
    errors = outcomes(4, job, 30.0)
    assert time.monotonic() - started < 10
    assert isinstance(errors[1], ZeroDivisionError)
    for rank in (0, 2, 3):
        error = errors[rank]
        assert isinstance(error, PeerFailed)
        assert error.code == "E0323"
        assert f"rank {rank} stopped because rank 1 failed: of my own" in error.message


def test_a_collective_after_a_failure_raises_at_its_start() -> None:
    group = RankGroup(RankMesh((("tp", 2),)))
    group.abort(1, ValueError("no"))
    with pytest.raises(PeerFailed):
        group.communicator(0).all_gather_start(torch.ones(1), ("tp",), 0)
    group.reset()
    group.communicator(0).all_gather_start(torch.ones(1), ("tp",), 0)


def test_the_first_failure_is_raised_and_the_ranks_can_be_used_again() -> None:
    def fail(communicator: Communicator) -> None:
        if communicator.rank == 1:
            raise ValueError("rank 1's own")
        communicator.all_reduce_start(torch.ones(1), ("tp",), "sum").wait()

    with pytest.raises(ValueError, match="rank 1's own"):
        on_ranks((("tp", 3),), fail)


@pytest.mark.parametrize("op", ["reduce_scatter", "all_to_all"])
def test_what_a_group_does_not_divide_is_refused(op: str) -> None:
    def job(communicator: Communicator) -> Tensor:
        if op == "all_to_all":
            return communicator.all_to_all_start(numbers(3), ("tp",), 0, 0, "it").wait()
        return communicator.reduce_scatter_start(numbers(3), ("tp",), 0, "sum", "it").wait()

    with pytest.raises(RunError) as caught:
        on_ranks((("tp", 2),), job)
    assert caught.value.code == "E0324"
    assert "cannot split dim 0 of [3] into 2 equal chunks" in caught.value.message
