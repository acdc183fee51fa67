"""What the issuing code asks of a device: the leaf interface behind which a GPU, a recorder or a CPU is."""

from __future__ import annotations

from typing import Protocol

from .steps import Block, Step


class Device(Protocol):
    """Streams in order, events between them, memory that belongs to streams, graphs that are captured."""

    def launch(self, step: Step) -> None:
        """Issue the instruction of a step to its stream, and set the data of its results and of the blocks it makes."""
        ...

    def record(self, stream: str, event: int) -> None:
        """The event marks all that was issued to the stream so far."""
        ...

    def wait(self, stream: str, event: int) -> None:
        """What is issued to the stream from now on begins behind the event. The host does not wait."""
        ...

    def free(self, block: Block) -> None:
        """Give memory back to the pool of its stream."""
        ...

    def begin_capture(self, stream: str) -> None:
        """What is issued to the stream from now on, and to streams that wait for its events, goes into a graph."""
        ...

    def end_capture(self, stream: str) -> None:
        """Complete the graph and launch it on the stream."""
        ...
