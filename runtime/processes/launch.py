"""Starts processes of this machine through torch's elastic launch API, and says what became of them.

Every process is a fresh interpreter that imports the entry by name, so nothing of the caller is run twice. What they
print goes to files: rank 0's is shown on standard error when all have ended, a dead rank's last lines with its error.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ...diagnostics import Span
from ..errors import RunError
from ..program.arguments import Json

_LAST_LINES = 12
_GRACE_S = 15
"""How long processes may take to end after another one failed; then they are killed."""
_TOLD = (-signal.SIGTERM, 128 + signal.SIGTERM)
"""How a process ends that was told to, at once or after the patience of `termination.py`."""
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What ends a run, but for those that were ignored before, as `nohup` and background jobs ask for."""


def run_processes(entry: str, arguments: Json, processes: int) -> list[Json]:
    """What `entry` returned in each of the processes, by rank.

    `entry` is "module:function" or "path/to/file.py:function", called with `arguments`; both these and the results are
    JSON. Each process finds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in its environment. Raises the
    first failure as RunError E0357, or with the code of the StrettoError that a rank ended with; afterwards no
    process, port or file is left.
    """
    with tempfile.TemporaryDirectory(prefix="stretto-") as name:
        folder = Path(name)
        (folder / "arguments.json").write_text(json.dumps(arguments))
        with _quiet_logging(), _signals_kept(), _environment(_defaults(processes)):
            try:
                elastic_launch(_config(folder, processes), sys.executable)(
                    "-P", "-m", f"{__package__}.rank_process", entry, str(folder)
                )
            except ChildFailedError as error:
                raise _explain(folder, error.failures, processes) from None
            except SignalException as error:
                raise KeyboardInterrupt from error
        sys.stderr.write(_printed(folder, 0))
        return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(processes)]


def _config(folder: Path, processes: int) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=_GRACE_S,
        signals_to_handle=",".join(each.name for each in _HANDLED if signal.getsignal(each) is not signal.SIG_IGN),
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )


def _defaults(processes: int) -> dict[str, str]:
    """Environment of the processes, where the caller's has nothing else."""
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    defaults = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {**defaults, "GLOO_SOCKET_IFNAME": loopback[0]} if loopback else defaults


def _explain(folder: Path, failures: Mapping[int, ProcessFailure], processes: int) -> RunError:
    """The error that says which rank failed first and why; the others' last words are its notes.

    The launcher's `failures` hold whom it saw fail first; the others ended afterwards, and have left their words too.
    """
    said = {rank: _said(folder, rank) for rank in range(processes)}
    ended = {rank: each for rank, each in failures.items() if each.exitcode not in _TOLD}
    first = min(ended or failures, key=lambda rank: _order(said[rank], failures[rank], rank))
    notes: list[tuple[str, Span | None]] = []
    for rank, words in sorted(said.items()):
        if rank != first and words:
            notes.append((words["message"] if words["code"] else f"rank {rank} failed: {words['message']}", None))
    words = said[first]
    if words and words["code"]:
        own = tuple((f"{message}: {place}" if place else message, None) for message, place in words["notes"])
        span = Span(*words["place"]) if words["place"] else None
        return RunError(words["code"], words["message"], span=span, notes=(*own, *notes), help=words["help"])
    what = words["message"] if words else _how(failures[first].exitcode)
    details = words.get("traceback", "") or "\n".join(_printed(folder, first).splitlines()[-_LAST_LINES:])
    return RunError(
        "E0357",
        f"rank {first} {'failed' if words else 'died'}: {what}",
        notes=(*notes, *(((f"rank {first} ended with\n{details.rstrip()}", None),) if details.strip() else ())),
    )


def _order(words: Mapping[str, Json], failure: ProcessFailure, rank: int) -> tuple[int, int]:
    """Who died without a word comes first, then who failed on its own; who stopped because of others comes last."""
    if not words:
        return 0, rank
    if words["kind"] == "other":
        return 1, rank
    return (3 if words["kind"] == "peer" or words["code"] in ("E0350", "E0351") else 2), rank


def _how(exit_code: int) -> str:
    """How a process ended that left no error.

    >>> _how(-9), _how(3)
    ('killed by SIGKILL', 'it exited with code 3')
    """
    return f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"it exited with code {exit_code}"


def _said(folder: Path, rank: int) -> dict[str, Any]:
    path = folder / f"error-{rank}.json"
    words: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return words


def _printed(folder: Path, rank: int) -> str:
    path = folder / f"printed-{rank}.txt"
    return path.read_text(errors="replace") if path.exists() else ""


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """The launcher's log repeats what our errors say, over many lines."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """The launcher sets handlers of its own and leaves them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """What is not set already is, for a while; what the launcher adds goes too."""
    before = dict(os.environ)
    os.environ.update({key: value for key, value in defaults.items() if key not in before})
    try:
        yield
    finally:
        for key in os.environ.keys() - before.keys():
            del os.environ[key]
