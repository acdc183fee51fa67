"""A device that writes the log of what it is given and hands it on: to a GPU, or to a model of its allocator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from ...runtime.program.arguments import Value as Argument
from ...runtime.program.arguments import encode
from ...runtime.program.ops import COLLECTIVES, COUNTS, MESSAGE_NAMES, MESSAGES
from ...runtime.program.program import Program
from ...runtime.program.records import Instruction
from .device import Device
from .steps import Block, Step, Value
from .stream_log import (
    Allocate,
    BeginCapture,
    Communication,
    EndCapture,
    Entry,
    Free,
    HostWork,
    Launch,
    Record,
    Wait,
)


class Addressed(Device, Protocol):
    """A device that can say where a block of memory lies."""

    def address(self, block: Block) -> int:
        """The first byte of a block that was made and not freed."""
        ...


class LoggingDevice:
    """See the module. `rank` runs `program`."""

    def __init__(self, inner: Addressed, program: Program, rank: int) -> None:
        self.log: list[Entry] = []
        self._inner = inner
        self._program = program
        self._rank = rank
        self._given: set[int] = set()

    def given(self, values: Iterable[Value]) -> None:
        """Note the memory of inputs, which the caller gives."""
        for block in (block for value in values for block in value.blocks):
            self._allocated(block)

    def launch(self, step: Step) -> None:
        """See `Device`. Waits for futures are events, and views are no work, but count as reads."""
        assert step.instruction is not None
        self._inner.launch(step)
        if step.instruction.op == "comm.wait":
            return
        for block in step.made:
            self._allocated(block)
        written = [block.number for block in step.made]
        if step.instruction.into is not None:
            written += [block.number for block in step.operands[step.instruction.into].blocks]
        kind = HostWork if step.is_host_work else Launch
        op = f"{step.instruction.op} {step.kernel}".strip()
        communication = self._communication(step.instruction, step.path[-1][0])
        self.log.append(kind(step.stream, op, step.reads, tuple(written), step.path, communication))

    def record(self, stream: str, event: int) -> None:
        """See `Device`."""
        self.log.append(Record(stream, event))
        self._inner.record(stream, event)

    def wait(self, stream: str, event: int) -> None:
        """See `Device`."""
        self.log.append(Wait(stream, event))
        self._inner.wait(stream, event)

    def free(self, block: Block) -> None:
        """See `Device`."""
        self.log.append(Free(block.number))
        self._inner.free(block)

    def begin_capture(self, stream: str) -> None:
        """See `Device`."""
        self.log.append(BeginCapture(stream))
        self._inner.begin_capture(stream)

    def end_capture(self, stream: str) -> None:
        """See `Device`."""
        self.log.append(EndCapture(stream))
        self._inner.end_capture(stream)

    def _allocated(self, block: Block) -> None:
        if block.static and block.number in self._given:
            return
        self._given.add(block.number)
        self.log.append(
            Allocate(block.stream, block.number, self._inner.address(block), max(block.nbytes, 1), block.static)
        )

    def _communication(self, instruction: Instruction, function: str) -> Communication | None:
        mesh = self._program.mesh
        if instruction.op in MESSAGES:
            peer = mesh.peer(self._rank, str(instruction.kwargs["axis"]), int(str(instruction.kwargs["peer"])))
            sends = instruction.op == "comm.send"
            source, target = (self._rank, peer) if sends else (peer, self._rank)
            slots = instruction.reads() if sends else instruction.writes()
            what = f"message {self._types(function, slots)}"
            return Communication(f"{source} -> {target}", (source, target), what)
        axes = instruction.kwargs.get("axes")
        if instruction.op not in COLLECTIVES or not isinstance(axes, list | tuple):
            return None
        members = mesh.group(self._rank, [str(axis) for axis in axes])
        if len(members) == 1:
            return None
        said = {key: value for key, value in instruction.kwargs.items() if key not in (*COUNTS, *_UNSAID)}
        tensors = [slot for slot in instruction.reads() if slot not in _counts(instruction)]
        what = f"{instruction.op} {_text(said)} {self._types(function, tensors)}"
        return Communication(f"over {', '.join(map(str, members))}", members, what)

    def _types(self, function: str, slots: Sequence[int]) -> str:
        types = (self._program.type_of(function, slot) for slot in slots) if self._program.states_types else ()
        return ", ".join(f"{each.dtype} {list(each.shape)}" for each in types if each is not None)


_UNSAID = {"axes", *(name for names in MESSAGE_NAMES.values() for name in names)}


def _counts(instruction: Instruction) -> set[int]:
    counts = Instruction("", kwargs={key: instruction.kwargs[key] for key in COUNTS if key in instruction.kwargs})
    return set(counts.reads())


def _text(keywords: dict[str, Argument]) -> str:
    return " ".join(f"{key}={encode(value)}" for key, value in sorted(keywords.items()))
