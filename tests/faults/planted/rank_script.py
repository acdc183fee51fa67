"""Two processes for each planted fault: prints a JSON line for each with what they say of it.

Run as `python -m tests.faults.planted.rank_script FOLDER FAULT...`; "none" plants nothing, in every loop. The processes
are forked, since importing torch takes longer than what they do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .process_faults import CRASHES, LOOPS, PROCESS_FAULTS

PATIENCE_S = 120.0
"""Seconds for the two processes of one fault."""


def free_port() -> int:
    """A port for the store."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


def forked(rank: int, port: int, work: Callable[[], None]) -> tuple[int, int]:
    """A process that does the work as one of two; its id, and where it says what happened."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), STRETTO_TIMEOUT_S="30")
    said = ""
    try:
        work()
    except CRASHES as error:
        said = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    os.write(writing, said.encode()[:2000])
    os._exit(0)


def said_by_both(work: Callable[[], None]) -> list[str]:
    """What went wrong in each of two processes; empty text where nothing did."""
    port = free_port()
    processes = [forked(rank, port, work) for rank in range(2)]
    end = time.monotonic() + PATIENCE_S
    running = {process for process, _ in processes}
    while running and time.monotonic() < end:
        running -= {process for process in running if os.waitpid(process, os.WNOHANG)[0]}
        time.sleep(0.02)
    for process in running:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    said = [os.read(reading, 4000).decode() for _, reading in processes]
    return ["it did not end"] * len(running) + said


def main(folder: Path, names: list[str]) -> None:
    """Run the faults, one after another."""
    for name in names:
        loops = list(LOOPS) if name == "none" else [PROCESS_FAULTS[name].scenario]

        def work(name: str = name, loops: list[str] = loops) -> None:
            with pytest.MonkeyPatch.context() as patch:
                if name != "none":
                    PROCESS_FAULTS[name].plant(patch)
                for loop in loops:
                    LOOPS[loop](folder)

        print(json.dumps({"fault": name, "said": said_by_both(work)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
