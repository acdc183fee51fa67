"""Launch of rank processes on this machine by torch's elastic launcher, and the launcher's error where one died.

Every process is a fresh interpreter that imports the entry by name, so the caller's script does not run twice. Their
output goes to files: that of rank 0 is printed to standard error at the end, a dead rank's last lines with its error.
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
"""Seconds that processes may take to end after another one failed; then they are killed."""
_TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a process that ended by SIGTERM, at once or after the grace period of `termination.py`."""
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What ends a run, but for those that were ignored before, as `nohup` and background jobs ask for."""


def run_processes(entry: str, arguments: Json, processes: int) -> list[Json]:
    """Run `entry(arguments)` in each of the processes; the results by rank.

    `entry` is "module:function" or "path/to/file.py:function"; arguments and results are JSON. Each process has RANK,
    WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in its environment. Raises the first failure as RunError E0357,
    or with the code of the StrettoError that a rank raised. Leaves no process, port or file behind.
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
                raise _first_failure(folder, error.failures, processes) from None
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
    """Environment variables of the processes, unless the caller has set them."""
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    defaults = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {**defaults, "GLOO_SOCKET_IFNAME": loopback[0]} if loopback else defaults


def _first_failure(folder: Path, failures: Mapping[int, ProcessFailure], processes: int) -> RunError:
    """The error of the rank that failed first; the errors of the others are its notes, each once.

    `failures` are the processes that the launcher saw fail. Others ended afterwards, and may have left a report, too.
    """
    reports = {rank: _error_report(folder, rank) for rank in range(processes)}
    own_failures = {rank: failure for rank, failure in failures.items() if failure.exitcode not in _TERMINATED}
    first = min(own_failures or failures, key=lambda rank: _blame_order(reports[rank], failures[rank], rank))
    others: list[str] = []
    for rank, report in sorted(reports.items()):
        if rank != first and report and report["message"] != reports[first].get("message"):
            others.append(report["message"] if report["code"] else f"rank {rank} failed: {report['message']}")
    notes: list[tuple[str, Span | None]] = [(message, None) for message in dict.fromkeys(others)]
    report = reports[first]
    if report and report["code"]:
        own_notes = tuple((f"{message}: {place}" if place else message, None) for message, place in report["notes"])
        span = Span(*report["place"]) if report["place"] else None
        return RunError(report["code"], report["message"], span=span, notes=(*own_notes, *notes), help=report["help"])
    reason = report["message"] if report else _exit_text(failures[first].exitcode)
    details = report.get("traceback", "") or "\n".join(_printed(folder, first).splitlines()[-_LAST_LINES:])
    return RunError(
        "E0357",
        f"rank {first} {'failed' if report else 'died'}: {reason}",
        notes=(*notes, *(((f"rank {first} ended with\n{details.rstrip()}", None),) if details.strip() else ())),
    )


def _blame_order(report: Mapping[str, Json], failure: ProcessFailure, rank: int) -> tuple[int, int]:
    """Sorts processes by how likely they caused the failure.

    First those that died without a report, then those with an error of their own, last those stopped by a peer.
    """
    if not report:
        return 0, rank
    if report["kind"] == "other":
        return 1, rank
    return (3 if report["kind"] == "peer" or report["code"] in ("E0350", "E0351") else 2), rank


def _exit_text(exit_code: int) -> str:
    """How a process without an error report ended.

    >>> _exit_text(-9), _exit_text(3)
    ('killed by SIGKILL', 'it exited with code 3')
    """
    return f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"it exited with code {exit_code}"


def _error_report(folder: Path, rank: int) -> dict[str, Any]:
    path = folder / f"error-{rank}.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return report


def _printed(folder: Path, rank: int) -> str:
    path = folder / f"printed-{rank}.txt"
    return path.read_text(errors="replace") if path.exists() else ""


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silence the launcher's log, which repeats our errors over many lines."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Restore the signal handlers that the launcher replaces."""
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
    """Set missing environment variables inside the context; removes those that the launcher adds, too."""
    before = dict(os.environ)
    os.environ.update({key: value for key, value in defaults.items() if key not in before})
    try:
        yield
    finally:
        for key in os.environ.keys() - before.keys():
            del os.environ[key]
