"""The bytes of ring collectives, as NCCL's tests define bus bandwidth."""

import pytest
from stretto.costs.communication import ring_bytes, sent_bytes


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_a_ring_sends_a_tensor_but_one_chunk_and_an_all_reduce_does_so_twice(ranks: int) -> None:
    """nccl-tests, doc/PERFORMANCE.md: busbw / algbw is (n-1)/n, and 2(n-1)/n for an all-reduce."""
    for kind in ("all_gather", "reduce_scatter", "all_to_all"):
        assert sent_bytes(kind, 1024, ranks) == 1024 * (ranks - 1) / ranks
    assert sent_bytes("all_reduce", 1024, ranks) == 2 * 1024 * (ranks - 1) / ranks


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather() -> None:
    parts = [sent_bytes(kind, 640, 4) for kind in ("reduce_scatter", "all_gather")]
    assert sent_bytes("all_reduce", 640, 4) == sum(parts)


@pytest.mark.parametrize(("ranks", "sent"), [(1, 0), (2, 640), (8, 640)])
def test_a_permute_sends_the_whole_tensor_once(ranks: int, sent: int) -> None:
    assert sent_bytes("permute", 640, ranks) == ring_bytes("permute", 640, ranks) == sent


def test_reports_round_down() -> None:
    assert (ring_bytes("all_gather", 10, 3), ring_bytes("all_reduce", 10, 3)) == (6, 12)
