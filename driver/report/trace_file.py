"""`stretto.trace`: what the ranks of this process run inside of a block, as a file for Perfetto or chrome://tracing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...runtime.lanes.timeline import trace_events
from ...runtime.rank.step_trace import StepTrace, recording
from ..text.text_files import write_text


@contextmanager
def trace(file: str | Path) -> Iterator[StepTrace]:
    """Record when each rank runs each instruction of programs, and write it to a file at the end, after an error too.

    The file is in the format of `stretto simulate --trace`. Under torchrun each process writes one of its own, with its
    rank in the name: of "steps.json", "steps.rank0.json". Work that is no instruction, such as the optimizer's, is not
    in it. Each instruction takes about a microsecond longer. Raises StrettoError E0508 where it cannot be written.

    >>> with trace("steps.json"):  # doctest: +SKIP
    ...     loss = model(x)
    ...     loss.backward()
    """
    path = Path(file)
    rank = os.environ.get("RANK")
    if rank is not None and "WORLD_SIZE" in os.environ:
        path = path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
    with recording() as steps:
        try:
            yield steps
        finally:
            write_text(path, json.dumps(trace_events(steps.tasks, "rank {}", max(1, steps.steps))))
