"""The watchdog names the communication that does not end, and nothing while all goes on."""

from __future__ import annotations

from dataclasses import dataclass

from stretto.backends.cuda.steps import Step
from stretto.backends.cuda.watchdog import StreamWatchdog
from stretto.runtime.errors import CollectiveError
from stretto.runtime.program.records import Instruction


@dataclass
class Flag:
    """Ends when it is told to."""

    ended: bool = False

    def query(self) -> bool:
        return self.ended


def step(stream: str, op: str, index: int) -> Step:
    return Step(stream, index, (("main", index),), Instruction(op))


def watchdog(now: list[float]) -> tuple[StreamWatchdog, list[CollectiveError]]:
    stopped: list[CollectiveError] = []
    return StreamWatchdog(3, 60.0, stopped.append, lambda: now[0]), stopped


def test_work_that_ends_is_forgotten() -> None:
    now, flag = [0.0], Flag()
    watched, _ = watchdog(now)
    watched.watch(step("comm", "comm.all_reduce_start", 4), flag)
    now[0] = 59.0
    assert watched.look() is None
    flag.ended = True
    now[0] = 100.0
    assert watched.look() is None


def test_the_first_communication_that_does_not_end_is_named() -> None:
    now = [0.0]
    watched, stopped = watchdog(now)
    watched.watch(step("compute", "aten.mm.default", 9), Flag())
    watched.watch(step("comm", "comm.all_reduce_start", 4), Flag())
    watched.watch(step("comm", "comm.all_gather_start", 5), Flag())
    now[0] = 61.0
    watched.run(interval_s=0.001)
    [error] = stopped
    assert error.code == "E0322"
    assert error.message == (
        'rank 3: instruction 4 (comm.all_reduce_start) of "main" on the stream "comm" has not ended after 60 s; '
        "the streams compute wait, too"
    )


def test_a_watchdog_that_is_closed_looks_no_more() -> None:
    watched, stopped = watchdog([1000.0])
    watched.watch(step("comm", "comm.all_reduce_start", 4), Flag())
    watched.close()
    watched.run(interval_s=0.001)
    assert stopped == []
