"""A function of a program as the steps that are priced, found once for all its calls.

Consecutive instructions that only move bytes are one kernel (unless told otherwise), as a compiler that fuses them
makes it: it reads what comes from outside and writes what is read outside, and costs one launch. Products,
communication and calls end a region. Views cost nothing. A call of a function whose kind is priced is one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...costs.kernels.gpu import Gpu
from ...costs.kernels.memory_bound import moved_seconds
from ...runtime.program.ops import COLLECTIVES
from ...runtime.program.program import Program
from ...runtime.program.records import Function, Instruction, SlotType
from .kernels import Kernel, Kind, Products, kernel_of, kernel_of_function, read_bytes


@dataclass(frozen=True)
class Start:
    """A collective begins: its bytes are those of the largest tensor that a rank takes or gives."""

    kind: str
    axes: tuple[str, ...]
    nbytes: int
    out: tuple[int, ...]
    shift: int = 1
    lane: str = ""
    location: int | None = None


@dataclass(frozen=True)
class Send:
    """A tensor leaves for the rank at `peer` on `axis`."""

    axis: str
    peer: int
    nbytes: int


@dataclass(frozen=True)
class Receive:
    """A tensor of the rank at `peer` on `axis` is waited for later."""

    axis: str
    peer: int
    out: int


@dataclass(frozen=True)
class Wait:
    """The thread's next kernel comes after the end of what `slot` holds."""

    slot: int


@dataclass(frozen=True)
class Called:
    """A call of another function."""

    name: str
    arguments: tuple[int, ...]
    out: tuple[int | None, ...]


Step = Kernel | Start | Send | Receive | Wait | Called


@dataclass
class _Region:
    """Instructions that only move bytes, so far."""

    reads: dict[int, int] = field(default_factory=dict)
    """By storage: the bytes that are read of it."""
    made: dict[int, int] = field(default_factory=dict)
    """By slot: the bytes that were computed."""
    location: int | None = None
    """Of its first instruction."""


class FunctionSteps:
    """The steps of one function on one GPU."""

    def __init__(
        self,
        program: Program,
        function: Function,
        gpu: Gpu,
        *,
        fuses: bool = True,
        products: Products = Products.AS_STATED,
    ) -> None:
        self._fuses, self._products = fuses, products
        self._program = program
        self._types = _types(program, function)
        self._gpu = gpu
        self._storage = _storages(function)
        self._last_read = _last_reads(function, self._storage)
        self._region = _Region()
        self.steps: list[Step] = []
        for index, instruction in enumerate(function.code):
            self._add(index, instruction)
        self._close(len(function.code))

    def _add(self, index: int, step: Instruction) -> None:
        kernel = self._kernel(step)
        if kernel is None and not step.op.startswith(("comm.", "call")):
            self._move(step)
            if not self._fuses:
                self._close(-1)
            return
        if step.op != "comm.wait":
            self._close(index)
        self.steps.append(replace(kernel, location=step.loc) if kernel else self._step(step))

    def _kernel(self, step: Instruction) -> Kernel | None:
        """The kernel of an instruction that computes products, or calls a function that is one."""
        if step.op == "call":
            callee = self._program.functions[str(step.args[0])]
            return kernel_of_function(callee, _types(self._program, callee), self._gpu)
        return None if step.op.startswith("comm.") else kernel_of(step, self._types, self._gpu, self._products)

    def _move(self, step: Instruction) -> None:
        made = [slot for slot in step.writes() if slot in self._types and self._storage.get(slot, slot) == slot]
        if not made:
            return  # a view
        for slot in step.reads():
            storage = self._storage.get(slot, slot)
            if slot in self._types and storage not in self._region.made:
                nbytes = min(read_bytes(step, slot, self._types), self._bytes(storage))
                self._region.reads[storage] = max(self._region.reads.get(storage, 0), nbytes)
        if not self._region.made:
            self._region.location = step.loc
        for slot in made:
            self._region.made[slot] = self._types[slot].bytes

    def _bytes(self, slot: int) -> int:
        return self._types[slot].bytes if slot in self._types else 0

    def _close(self, index: int) -> None:
        """End the region: what is read from `index` on (-1: all) is written to memory."""
        region, self._region = self._region, _Region()
        written = sum(nbytes for slot, nbytes in region.made.items() if self._last_read.get(slot, -1) >= index)
        if region.made:
            seconds = float(moved_seconds(sum(region.reads.values()) + written, self._gpu))
            self.steps.append(Kernel(Kind.MEMORY, seconds, location=region.location))

    def _step(self, step: Instruction) -> Step:
        if step.op == "call":
            return Called(str(step.args[0]), tuple(step.reads()), step.out)
        if step.op == "comm.wait":
            return Wait(step.reads()[0])
        if step.op == "comm.send":
            return Send(str(step.kwargs["axis"]), _integer(step.kwargs["peer"]), self._bytes(step.reads()[0]))
        if step.op == "comm.receive_start":
            return Receive(str(step.kwargs["axis"]), _integer(step.kwargs["peer"]), step.writes()[0])
        assert step.op in COLLECTIVES, f"{step.op} is an op of its own that is not priced"
        axes = step.kwargs["axes"]
        assert isinstance(axes, list | tuple), "validated"
        kind = step.op.removeprefix("comm.").removesuffix("_start").removesuffix("_coalesced")
        taken, given = self._sum(step.reads()), self._sum(step.writes())
        return Start(
            "all_to_all" if kind == "all_to_all_rows" else kind, tuple(map(str, axes)), max(taken, given),
            step.writes(), _integer(step.kwargs.get("shift", 1)), step.lane, step.loc,
        )  # fmt: skip

    def _sum(self, slots: Sequence[int]) -> int:
        return sum(self._bytes(slot) for slot in slots)


def _types(program: Program, function: Function) -> dict[int, SlotType]:
    return {slot: program.types[index] for slot, index in enumerate(function.types) if index is not None}


def _storages(function: Function) -> dict[int, int]:
    """For each view, the slot whose memory it lies in."""
    storages: dict[int, int] = {}
    for slot, operand in function.views:
        storages[slot] = storages.get(operand, operand)
    return storages


def _last_reads(function: Function, storages: dict[int, int]) -> dict[int, int]:
    """For each storage, the index of the last instruction that reads it, or of the end where it is returned."""
    last = {}
    for index, step in enumerate(function.code):
        for slot in step.reads():
            last[storages.get(slot, slot)] = index
    for slot in function.results:
        last[storages.get(slot, slot)] = len(function.code)
    return last


def _integer(value: object) -> int:
    assert isinstance(value, int), "validated"
    return value
