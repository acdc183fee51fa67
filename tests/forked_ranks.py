"""Rank processes that cost no import: forked from a server that has imported Stretto, with a store of the test's."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["stretto.driver.model.decorator", "stretto.driver.checkpoints.checkpoints"])
_LIMIT_S = 120.0
"""Seconds after which a rank has hung: far more than any timeout here."""


@dataclass(frozen=True)
class Outcome:
    """What one rank returned or raised."""

    rank: int
    value: Any = None
    code: str = ""
    message: str = ""
    text: str = ""
    """The rendered error."""
    printed: str = ""
    seconds: float = 0.0
    """From the start of the entry to its end."""
    exit_code: int | None = None


def run_ranks(entry: Callable[..., Any], size: int, *arguments: Any, timeout_s: float = 2.0) -> list[Outcome]:
    """`entry(rank, *arguments)` in each of some processes, by rank. Ends all of them."""
    with _store() as port:
        processes, pipes = [], []
        for rank in range(size):
            receiver, sender = _CONTEXT.Pipe(duplex=False)
            environment = {
                "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo",
                "STRETTO_TIMEOUT_S": str(timeout_s), "TORCH_CPP_LOG_LEVEL": "ERROR",
            }  # fmt: skip
            process = _CONTEXT.Process(target=_run, args=(environment, entry, rank, arguments, sender), daemon=True)
            with _importable_tests():
                process.start()
            sender.close()
            processes.append(process)
            pipes.append(receiver)
        deadline = time.monotonic() + _LIMIT_S
        outcomes = [_outcome(pipe, rank, deadline) for rank, pipe in enumerate(pipes)]
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        return [
            Outcome(**{**vars(outcome), "exit_code": process.exitcode})
            for outcome, process in zip(outcomes, processes, strict=True)
        ]


def values_of_ranks(entry: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """What `entry(rank, *arguments)` returns in each of some processes; every rank must return."""
    ranks = run_ranks(entry, size, *arguments, timeout_s=_LIMIT_S / 2)
    assert not [rank for rank in ranks if rank.text], "\n".join(rank.text + rank.printed for rank in ranks)
    return [rank.value for rank in ranks]


@contextlib.contextmanager
def _importable_tests() -> Iterator[None]:
    """A child imports what it runs from the folder of the tests, which pytest does not put on the path."""
    sys.path.append(str(Path(__file__).parent.parent))
    try:
        yield
    finally:
        sys.path.pop()


@contextlib.contextmanager
def _store() -> Iterator[int]:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield store.port
    del store


def _outcome(pipe: Connection, rank: int, deadline: float) -> Outcome:
    try:
        if pipe.poll(max(0.0, deadline - time.monotonic())):
            outcome: Outcome = pipe.recv()
            return outcome
    except EOFError:
        return Outcome(rank, text="it sent nothing")
    return Outcome(rank, text="it hung")


def _run(
    environment: dict[str, str], entry: Callable[..., Any], rank: int, arguments: tuple[Any, ...], pipe: Connection
) -> None:
    import torch
    from stretto.diagnostics import StrettoError
    from stretto.runtime.processes.world import leave

    os.environ.update(environment)
    torch.set_num_threads(1)
    started, printed, told = time.monotonic(), io.StringIO(), {}
    with contextlib.redirect_stderr(printed):
        try:
            told = {"value": entry(rank, *arguments)}
        except StrettoError as error:
            told = {"code": error.code, "message": error.message, "text": error.render()}
        except Exception as error:
            told = {"code": "raw", "message": str(error), "text": f"{type(error).__name__}: {error}"}
    pipe.send(Outcome(rank, printed=printed.getvalue(), seconds=time.monotonic() - started, **told))
    if "value" in told:
        leave()
    os._exit(0 if "value" in told else 1)
