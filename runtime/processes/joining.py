"""The first connection of a process: it joins the others within a limit, and names those that do not come."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ..errors import RunError, rank_list
from .watchdog import Store

_JOINED = "stretto/joined"
GRACE_S = 5.0
"""Seconds by which torch's limit for collectives is longer than ours, so that the error is ours."""


def connect(device: torch.device, limit_s: float) -> None:
    """Make the process group from the launcher's environment. Raises RunError E0361 for processes that do not come."""
    limit = timedelta(seconds=limit_s)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=limit)))
    except (RuntimeError, ConnectionError) as error:
        raise _not_all_came(limit_s, "the others", _first_line(error)) from error
    store.set_timeout(limit)
    try:
        store.set(f"{_JOINED}/{rank}", "")
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size,
            timeout=timedelta(seconds=limit_s + GRACE_S), device_id=device if device.type == "cuda" else None,
        )  # fmt: skip
    except RuntimeError as error:
        missing = [other for other in range(size) if not _has_joined(store, other)]
        raise _not_all_came(limit_s, rank_list(missing) if missing else "the others", "") from error


def _has_joined(store: Store, rank: int) -> bool:
    try:
        return bool(store.check([f"{_JOINED}/{rank}"]))
    except RuntimeError:
        return False


def _not_all_came(limit_s: float, missing: str, detail: str) -> RunError:
    return RunError(
        "E0361",
        f"this process waited {limit_s:g} s for {missing} to join" + (f": {detail}" if detail else ""),
        help="look at the output of those processes: one that fails or ends before it calls Stretto never joins; "
        "where they only start late, set STRETTO_TIMEOUT_S (seconds) higher",
    )


def _first_line(error: BaseException) -> str:
    text = str(error).splitlines()
    return text[0].rpartition("] ")[2] if text else type(error).__name__
