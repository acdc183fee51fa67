"""One thread per rank, kept between steps. Runs one job on every rank and returns all results, or raises one error."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

import torch

from ..errors import RunError, rank_list
from .communicator import RankGroup

T = TypeVar("T")
Job = Callable[[], None]
_POLL_S = 0.02
"""Seconds between two checks of ranks that must stop: an interruption may have lost the notice of one."""
_JOIN_S = 5.0
"""Seconds that closing waits for a thread that still runs an op."""


class _Step(Generic[T]):
    """The progress of one job on all ranks."""

    def __init__(self) -> None:
        self.ended: dict[int, tuple[T, ...]] = {}
        """By rank: its result as a tuple of one, empty where it failed."""
        self.ended_ranks: queue.SimpleQueue[None] = queue.SimpleQueue()
        """One item for each rank that has ended, to wait for."""


class RankPool:
    """The threads of a `RankGroup`. They are daemons, and end on `close()` or when the pool is garbage-collected."""

    def __init__(self, group: RankGroup) -> None:
        self._group = group
        self._begin()

    def _begin(self) -> None:
        """Start the threads: at first, and in a child that this process forked, which has none of them."""
        self._process = os.getpid()
        self._jobs = [queue.SimpleQueue[Job | None]() for _ in range(self._group.mesh.ranks)]
        self._one_step = threading.Lock()
        self._stuck: tuple[int, ...] = ()
        threads = [
            threading.Thread(target=_serve, args=(jobs,), name=f"stretto-rank-{rank}", daemon=True)
            for rank, jobs in enumerate(self._jobs)
        ]
        for thread in threads:
            thread.start()
        self._close = weakref.finalize(self, _stop, self._jobs, threads)
        self._share_cores()

    def run(self, job: Callable[[int], T]) -> list[T]:
        """Run `job(rank)` on all ranks at once. Raises the first failure after all ranks have stopped."""
        if self._process != os.getpid():
            self._close.detach()
            self._group.begin_again()
            self._begin()
        with self._one_step:
            if not self.usable:
                stuck = f" and left stuck: {rank_list(self._stuck)}" if self._stuck else ""
                raise RunError("E0325", f"the rank threads were stopped{stuck}", help="make a new session")
            step = _Step[T]()
            self._group.begin()
            try:
                for rank, jobs in enumerate(self._jobs):
                    jobs.put(_job(job, rank, self._group, step))
                self._wait(step)
            except KeyboardInterrupt as interruption:
                self._group.abort(None, interruption)
                self._wait(step)
                self._group.reset()
                raise
            if self._group.failure is not None:
                _, error = self._group.failure
                self._group.reset()
                raise error
            return [value for rank in range(len(self._jobs)) for value in step.ended[rank]]

    @property
    def usable(self) -> bool:
        """Whether a step can run: no rank is stuck in a failed one, and the pool is not closed."""
        return not self._stuck and self._close.alive

    def close(self) -> None:
        """End the threads; a thread inside an op ends after it."""
        self._close()

    def _wait(self, step: _Step[T]) -> None:
        """Wait for all ranks to end. Once one has failed, the others have the group's timeout to stop."""
        deadline: float | None = None
        while len(step.ended) < len(self._jobs):
            if deadline is None and self._group.failure is not None:
                deadline = time.monotonic() + self._group.timeout_s
            if deadline is not None and time.monotonic() > deadline:
                raise self._stuck_error(step.ended.keys())
            with contextlib.suppress(queue.Empty):
                step.ended_ranks.get(timeout=None if deadline is None else _POLL_S)

    def _stuck_error(self, stopped: Collection[int]) -> RunError:
        self._stuck = tuple(rank for rank in range(len(self._jobs)) if rank not in stopped)
        self._close.detach()
        for jobs in self._jobs:
            jobs.put(None)
        assert self._group.failure is not None, "only a failure sets a deadline"
        _, error = self._group.failure
        return RunError(
            "E0325",
            f"a rank failed, and {rank_list(self._stuck)} did not stop within {self._group.timeout_s:g} s",
            notes=((f"the failure: {error}", None),),
        )

    def _share_cores(self) -> None:
        """Divide the cores among the ranks; the caller's own number of threads stays as it was."""
        cores = torch.get_num_threads()
        cores_per_rank = max(1, cores // len(self._jobs))
        self.run(lambda rank: torch.set_num_threads(cores_per_rank))
        torch.set_num_threads(cores)


def _serve(jobs: queue.SimpleQueue[Job | None]) -> None:
    while True:
        job = jobs.get()
        if job is None:
            return
        job()
        del job


def _job(job: Callable[[int], T], rank: int, group: RankGroup, step: _Step[T]) -> Job:
    def run() -> None:
        try:
            result = (job(rank),)
            group.end(rank)
            step.ended[rank] = result
        except BaseException as error:  # carried to the caller's thread, which raises it
            group.abort(rank, error)
            step.ended[rank] = ()
        step.ended_ranks.put(None)

    return run


def _stop(jobs: Sequence[queue.SimpleQueue[Job | None]], threads: Sequence[threading.Thread]) -> None:
    for rank_jobs in jobs:
        rank_jobs.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(_JOIN_S)
