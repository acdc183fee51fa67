"""Streams, events and graphs of a CUDA device, by torch. No GPU has run this file yet; docs/gpu.md says so."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch

from ...runtime.lanes.names import COMPUTE


class CudaStreams:
    """The streams of a rank on its device. The stream "compute" is the one on which the caller works."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: dict[str, torch.cuda.Stream] = {COMPUTE: torch.cuda.current_stream(device)}
        self._events: dict[int, torch.cuda.Event] = {}
        self._pool: Any = None
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._open: ExitStack | None = None

    @property
    def graphs(self) -> list[torch.cuda.CUDAGraph]:
        """What was captured, in order; replaying all in this order, with the work of the host between, is the step."""
        return self._graphs

    def event_here(self) -> torch.cuda.Event:
        """An event behind all that was issued to torch's current stream, for the watchdog."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def use(self, stream: str) -> AbstractContextManager[Any]:
        """See `Streams`."""
        return torch.cuda.stream(self._stream(stream))

    def record(self, stream: str, event: int) -> None:
        """See `Streams`."""
        marked = self._events[event] = torch.cuda.Event()  # type: ignore[no-untyped-call]
        marked.record(self._stream(stream))

    def wait(self, stream: str, event: int) -> None:
        """See `Streams`."""
        self._stream(stream).wait_event(self._events[event])

    def begin_capture(self, stream: str) -> None:
        """See `Streams`. All graphs share a pool: they are replayed in order, never at once."""
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        self._open = ExitStack()
        self._streams[stream] = captured = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        captured.wait_stream(torch.cuda.current_stream(self._device))
        self._open.enter_context(torch.cuda.graph(graph, pool=self._pool, stream=captured))
        self._graphs.append(graph)

    def end_capture(self, stream: str) -> None:
        """See `Streams`."""
        assert self._open is not None
        self._open.close()
        self._open = None
        self._streams[stream] = torch.cuda.current_stream(self._device)
        self._graphs[-1].replay()

    def _stream(self, name: str) -> torch.cuda.Stream:
        if name not in self._streams:
            self._streams[name] = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return self._streams[name]
