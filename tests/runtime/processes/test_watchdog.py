"""What a process says when others stop, seen by one rank with a store of its own."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from stretto.runtime import CollectiveError, PeerFailed
from stretto.runtime.processes import watchdog
from stretto.runtime.processes.calls import CallLog
from stretto.runtime.processes.diagnosis import StopReason
from stretto.runtime.processes.watchdog import Watchdog


class Store:
    """A store in memory; `broken` makes it one whose process is gone."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.broken = False

    def set(self, key: str, value: str) -> None:
        self._use()
        self.values[key] = value

    def get(self, key: str) -> bytes:
        self._use()
        return self.values[key].encode()

    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
        self._use()
        if self.values.get(key, "") == expected_value:
            self.values[key] = desired_value
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        self._use()
        return all(key in self.values for key in keys)

    def _use(self) -> None:
        if self.broken:
            raise RuntimeError("Broken pipe")


class Work:
    """A collective that never ends, or fails at once."""

    def __init__(self, error: str = "") -> None:
        self.error = error

    def wait(self, timeout: timedelta = timedelta()) -> bool:
        if self.error:
            raise RuntimeError(self.error)
        time.sleep(0.01)
        raise RuntimeError("Operation timed out!")

    def is_completed(self) -> bool:
        return bool(self.error)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "HEARTBEAT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(watchdog, "HEARTBEAT_S", 0.02)


def stopped(store: Store, work: Work, size: int = 2, timeout_s: float = 30.0) -> CollectiveError:
    """What rank 0 raises, waiting with all others."""
    dog = Watchdog(store, 0, size, timeout_s)
    try:
        with pytest.raises(CollectiveError) as caught:
            dog.wait(work, "the third instruction", range(size))  # type: ignore[arg-type]
    finally:
        dog.close()
    return caught.value


def living(store: Store, rank: int) -> Watchdog:
    return Watchdog(store, rank, 2, 30.0)


def report(store: Store, rank: int, **fields: Any) -> None:
    store.set(f"stretto/stopped/{rank}", json.dumps(fields))
    store.set("stretto/stopped", str(rank))


def test_a_rank_without_a_sign_of_life_is_gone() -> None:
    error = stopped(Store(), Work("Connection closed by peer"))
    assert error.code == "E0350"
    assert "rank 1 is gone" in error.message
    assert "rank 0 waited for it in the third instruction" in error.message


def test_a_rank_that_lives_but_does_not_come_is_waited_for_so_long() -> None:
    store = Store()
    other = living(store, 1)
    error = stopped(store, Work(), timeout_s=0.1)
    other.close()
    assert error.code == "E0322"
    assert error.message == "rank 0 waited 0.1 s in the third instruction for rank 1"
    assert "rank 1 is alive, but waited in no collective" in error.render()


def test_a_rank_that_fails_says_why_to_those_that_wait() -> None:
    store = Store()
    other = living(store, 1)
    threading.Timer(0.1, other.failed, ("out of memory",)).start()
    error = stopped(store, Work())
    other.close()
    assert isinstance(error, PeerFailed)
    assert error.code == "E0323"
    assert error.message == "rank 1 failed: out of memory; rank 0 waited for it in the third instruction"


def test_a_rank_that_waited_too_long_stops_the_others_with_its_reason() -> None:
    store = Store()
    report(store, 1, reason="timeout", where="the second instruction")
    error = stopped(store, Work())
    assert error.code == "E0322"
    assert error.message == "rank 1 waited 30 s in the second instruction"


def test_a_connection_lost_between_living_ranks_is_shown_with_its_cause() -> None:
    store = Store()
    report(store, 1, reason="lost", where="the same instruction")
    error = stopped(store, Work("Connection reset\nat some line"))
    assert error.code == "E0351"
    assert error.message == "rank 0 lost a connection in the third instruction: Connection reset"
    assert "rank 1 stopped in the same instruction" in error.render()


def test_a_store_that_is_gone_is_said() -> None:
    store = Store()
    store.broken = True
    error = stopped(store, Work())
    assert error.code == "E0351"
    assert "the process of the store, rank 0 or the launcher, is gone" in error.message


def test_many_ranks_are_not_all_listed() -> None:
    store = Store()
    for rank in range(2, 20):
        report(store, rank, reason="peer stopped", where=f"instruction {rank}")
    error = stopped(store, Work("lost"), size=20)
    assert "rank 1 is gone" in error.message
    assert len(error.notes) == 9
    assert error.notes[-1][0] == "and 10 more"


def test_a_process_that_ends_waits_for_a_heartbeat_that_is_slow() -> None:
    class Slow(Store):
        def set(self, key: str, value: str) -> None:
            time.sleep(3 * watchdog.HEARTBEAT_S)

    before = set(threading.enumerate())
    dog = Watchdog(Slow(), 0, 1, 1.0)
    [heartbeat] = set(threading.enumerate()) - before
    dog.close()
    assert not heartbeat.is_alive()


def test_ranks_whose_calls_differ_are_told_of_the_first_call_in_which_they_do() -> None:
    store, calls = Store(), CallLog()
    with calls.call("forward", lambda: {"mode": "train"}):
        calls.communicate()
    log = {"calls": [[0, "forward", {"mode": "eval"}], [1, "clip", {}]], "open": True, "ended": False}
    report(store, 1, reason="peer stopped", where="the norm", log=log)
    dog = Watchdog(store, 0, 2, 30.0, calls)
    with calls.call("backward"), pytest.raises(CollectiveError) as caught:
        calls.communicate()
        dog.wait(Work(), "the third instruction", range(2))  # type: ignore[arg-type]
    dog.close()
    assert caught.value.code == "E0360"
    assert caught.value.message == "rank 1 differs in call 1 (forward): mode eval; on rank 0: mode train"


def test_most_ranks_are_right_and_the_one_that_differs_is_named() -> None:
    store, calls = Store(), CallLog()
    for rank in (1, 2):
        what = "save" if rank == 1 else "forward"
        log = {"calls": [[0, what, {}]], "open": True, "ended": False}
        report(store, rank, reason="peer stopped", where="there", log=log)
    with calls.call("forward"):
        calls.communicate()
        dog = Watchdog(store, 0, 3, 30.0, calls)
        with pytest.raises(CollectiveError) as caught:
            dog.wait(Work(), "here", range(3))  # type: ignore[arg-type]
        dog.close()
    assert caught.value.message == "rank 1 differs in call 1: save; on ranks 0, 2: forward"


def test_all_ranks_raise_the_diagnosis_of_the_first_and_raise_it_again() -> None:
    store = Store()
    first = stopped(store, Work("Connection closed by peer"))
    dog = Watchdog(store, 1, 2, 30.0)
    second = dog.stop(StopReason.LOST, "elsewhere", (0, 1), "Connection reset")
    with pytest.raises(CollectiveError) as again:
        dog.check()
    dog.close()
    assert (second.code, second.message) == (first.code, first.message) == (again.value.code, again.value.message)


def test_an_error_before_a_rank_communicates_stops_those_that_wait_in_that_call_alone() -> None:
    store, failing, waiting = Store(), CallLog(), CallLog()
    other = Watchdog(store, 1, 2, 30.0, failing)
    with contextlib.suppress(ValueError), failing.call("forward"):
        other.raised("no such file")
        raise ValueError
    dog = Watchdog(store, 0, 2, 0.2, waiting)
    with waiting.call("forward"):
        waiting.communicate()
        error = dog.stop(StopReason.PEER_STOPPED, "here", (0, 1))
    assert error.message == "rank 1 failed in its call 1 (forward) before it communicated: no such file; " + (
        "rank 0 waited for it in here"
    )
    assert failing.position == "0.1" and waiting.position == "1.0"
    for each in (other, dog):
        each.close()


def test_the_texts_of_torchs_connections_are_not_shown() -> None:
    text = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:23"
    store = Store()
    report(store, 1, reason="lost", where="the same instruction")
    assert stopped(store, Work(text)).message.endswith("in the third instruction: Connection closed by peer")
