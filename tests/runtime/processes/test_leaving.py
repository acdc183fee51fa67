"""A script that ends does not leave the process group open that Stretto made for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from ...subsets import only

SCRIPT = """
import atexit
import torch.distributed as dist
atexit.register(lambda: print(dist.is_initialized()))  # runs last
from stretto.runtime.processes.world import join
join()
assert dist.is_initialized()
"""


ENDS = [("", "False"), ("raise ValueError", "True")]


@pytest.mark.parametrize(("end", "is_open"), only(ENDS[:1], ENDS))
def test_the_process_group_is_closed_at_the_end_but_not_after_an_error(end: str, is_open: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT + end],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **launched},
    )
    assert ended.stdout.split() == [is_open], ended.stderr
    assert ended.returncode == (1 if end else 0)
