"""The stream programs of ranks are proved as they are recorded, and no longer when a fault is planted in them."""

from __future__ import annotations

from functools import cache

import pytest
from stretto.backends.cuda.agreement import prove
from stretto.backends.cuda.proof import StreamFault
from stretto.backends.cuda.recording import recorded
from stretto.backends.cuda.stream_log import Communication, Launch, Record, Wait
from stretto.runtime.program.program import Program

from ...runtime import lane_module, rotated_module
from ...runtime.grid_program import grid
from ...runtime.pipe_program import Pipe
from .planted import KINDS, Log, Logs, is_in_order, planted

FAULTS = 20
"""Of each kind."""
CODES = {
    "events": {"E0733", "E0734", "E0736"},
    "communicators": {"E0735"},
    "memory": {"E0733", "E0734"},
    "graphs": {"E0733", "E0736"},
}
"""What a fault of a kind may be found as: work that is early for one reason is often early for another."""


def programs() -> list[Program]:
    return [
        rotated_module.rotated(4),
        rotated_module.lowered(lane_module.module()),
        grid(),
        Pipe(microbatches=3, dp=2).train(),
    ]


@cache
def logs(capture: bool) -> list[Logs]:
    return [[recorded(each, rank, capture=capture) for rank in range(each.mesh.ranks)] for each in programs()]


@pytest.mark.parametrize("capture", [False, True], ids=["streams", "graphs"])
def test_what_is_recorded_is_proved(capture: bool) -> None:
    for each in logs(capture):
        prove(each)
        assert all(map(is_in_order, each))


@pytest.mark.parametrize("kind", KINDS)
def test_planted_faults_are_found(kind: str) -> None:
    capture = kind == "graphs"
    for what, each in planted(kind, logs(capture), FAULTS, seed=1):
        with pytest.raises(StreamFault) as caught:
            prove(each)
        assert caught.value.code in CODES[kind], (what, caught.value.message)


def test_two_ranks_that_wait_for_each_other_never_end() -> None:
    """Each sends on the stream on which it then receives; with streams of their own, messages pass."""
    there, back = Communication("0 -> 1", (0, 1), "message"), Communication("1 -> 0", (1, 0), "message")

    def crossing(streams: tuple[str, str]) -> Logs:
        return [
            [
                Launch(streams[0], "comm.send", (), (), (), sent),
                Launch(streams[1], "comm.receive_start", (), (), (), got),
            ]
            for sent, got in ((there, back), (back, there))
        ]

    prove(crossing(("send", "receive")))
    with pytest.raises(
        StreamFault, match=r'rank 0 never ends: comm\.send on "messages" waits for other ranks'
    ) as caught:
        prove(crossing(("messages", "messages")))
    assert caught.value.code == "E0735"


def test_ranks_that_swap_two_collectives_differ() -> None:
    first, second = (Communication("over 0, 1", (0, 1), what) for what in ("a sum", "a gather"))
    logs: Logs = [
        [Launch("comm", "comm.start", (), (), (), each) for each in order]
        for order in ((first, second), (second, first))
    ]
    with pytest.raises(
        StreamFault, match="work 0 of the communicator over 0, 1 differs: rank 0 a sum, rank 1 a gather"
    ):
        prove(logs)


def test_two_streams_of_one_communicator_are_ordered() -> None:
    said = Communication("over 0, 1", (0, 1), "a sum")
    alone = [Launch("a", "comm.start", (), (), (), said), Launch("b", "comm.start", (), (), (), said)]
    with pytest.raises(StreamFault, match='on "b" is not behind the last work of its communicator'):
        prove([alone, alone])
    ordered: Log = [alone[0], Record("a", 0), Wait("b", 0), alone[1]]
    prove([ordered, ordered])
