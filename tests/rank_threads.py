"""Which rank threads run in this process, and whether those of a test have ended."""

from __future__ import annotations

import gc
import threading
import time

_PATIENCE_S = 10.0
"""How long threads may take to end on a busy machine, once nothing holds their session."""


def rank_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("stretto-rank")}


def begun_and_left(before: set[threading.Thread]) -> set[threading.Thread]:
    """The threads that were not there before and have not ended, after garbage is collected."""
    gc.collect()
    deadline = time.monotonic() + _PATIENCE_S
    while rank_threads() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    return rank_threads() - before
