"""A device with real tensors: on a CPU, where streams order nothing, or on a GPU by torch's streams, events and graphs.

Collectives and messages go through the rank's communicator, which calls NCCL on a GPU: they are started and awaited
with their stream as torch's current one, so that NCCL's work lies between the stream's work before and after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from ...runtime.communicator import Communicator
from ...runtime.program.arguments import Slot, slots_in
from ...runtime.program.entries import depends_on_microbatch
from ...runtime.program.ops import COALESCED, COLLECTIVES, MESSAGES, RANK_OPS, torch_op
from ...runtime.program.rank_ops import RankOps
from ...runtime.rank.state_writes import writing_into
from ...runtime.rank.translate import PARAMETERS
from .steps import Block, Step, Value

Kernels = Mapping[str, Callable[..., list[Tensor]]]


class Streams(Protocol):
    """Streams, events and graphs of a kind of device."""

    def use(self, stream: str) -> AbstractContextManager[Any]:
        """Inside, torch issues its work to the stream."""
        ...

    def record(self, stream: str, event: int) -> None:
        """See `Device`."""
        ...

    def wait(self, stream: str, event: int) -> None:
        """See `Device`."""
        ...

    def begin_capture(self, stream: str) -> None:
        """See `Device`."""
        ...

    def end_capture(self, stream: str) -> None:
        """See `Device`."""
        ...


class InOrder:
    """One stream that does everything at once: a CPU's."""

    def use(self, stream: str) -> AbstractContextManager[Any]:
        """See `Streams`."""
        return nullcontext()

    def record(self, stream: str, event: int) -> None:
        """See `Streams`."""

    def wait(self, stream: str, event: int) -> None:
        """See `Streams`."""

    def begin_capture(self, stream: str) -> None:
        """See `Streams`."""

    def end_capture(self, stream: str) -> None:
        """See `Streams`."""


class TensorDevice:
    """See the module. Kernels run in place of the functions that they are named after."""

    def __init__(
        self,
        communicator: Communicator,
        device: torch.device,
        streams: Streams,
        microbatches: int = 1,
        kernels: Kernels | None = None,
        watch: Callable[[Step], None] | None = None,
    ) -> None:
        """`watch` is called behind each communication, while its stream is the current one."""
        self._watch = watch
        self._communicator = communicator
        self._device = device
        self._streams = streams
        self._rank_ops = RankOps(communicator, device, microbatches)
        self._kernels = kernels or {}

    def address(self, block: Block) -> int:
        """See `Addressed`: of the tensor that lies in it; of one without elements a number of its own."""
        tensors = (value.data for value in block.values)
        return next((x.data_ptr() for x in tensors if isinstance(x, Tensor) and x.numel()), -block.number)

    def launch(self, step: Step) -> None:
        """See `Device`. Errors are those of torch and of the communicator."""
        assert step.instruction is not None
        with self._streams.use(step.stream):
            results = self._results(step)
            if self._watch is not None and step.instruction.op in (*COLLECTIVES, *MESSAGES):
                self._watch(step)
        for value, data in zip(step.results, results, strict=True):
            value.data = data

    def record(self, stream: str, event: int) -> None:
        """See `Device`."""
        self._streams.record(stream, event)

    def wait(self, stream: str, event: int) -> None:
        """See `Device`."""
        self._streams.wait(stream, event)

    def free(self, block: Block) -> None:
        """See `Device`. The tensors go, and torch's allocator has their memory."""
        for value in block.values:
            value.data = None

    def begin_capture(self, stream: str) -> None:
        """See `Device`."""
        self._streams.begin_capture(stream)

    def end_capture(self, stream: str) -> None:
        """See `Device`."""
        self._streams.end_capture(stream)

    def _results(self, step: Step) -> list[Any]:
        instruction = step.instruction
        assert instruction is not None
        if instruction.op == "comm.wait":
            [future] = step.operands.values()
            return [future.data]
        if step.kernel:
            return self._kernels[step.kernel](*[step.operands[slot].data for slot in slots_in(instruction.args[1])])
        arguments = [_data(value, step.operands) for value in instruction.args]
        if instruction.op in COLLECTIVES or instruction.op in MESSAGES:
            keywords = [_data(instruction.kwargs[key], step.operands) for key in PARAMETERS[instruction.op]]
            method = getattr(self._communicator, instruction.op.removeprefix("comm."))
            started = method(*arguments, *keywords, f"{step.path[-1][0]} {step.path[-1][1]}")
            if instruction.op == "comm.send":
                return []
            handles = started if instruction.op in COALESCED else [started]
            return [handle.wait() for handle in handles]
        if instruction.op in RANK_OPS:
            keywords = [_data(instruction.kwargs[key], step.operands) for key in PARAMETERS[instruction.op]]
            time = [step.microbatch] if depends_on_microbatch(instruction) else []
            return [getattr(self._rank_ops, instruction.op.removeprefix("rank."))(*arguments, *keywords, *time)]
        return self._torch_op(step, arguments)

    def _torch_op(self, step: Step, arguments: list[Any]) -> list[Any]:
        instruction = step.instruction
        assert instruction is not None
        op = torch_op(instruction.op)
        keywords = {key: _data(value, step.operands) for key, value in instruction.kwargs.items()}
        if op.is_factory:
            keywords["device"] = self._device
        if instruction.into is not None:
            return [writing_into(instruction.op)(step.operands[instruction.into].data, *arguments, **keywords)]
        result = op.call(*arguments, **keywords)
        if op.gives_list:
            return list(result)
        return [result] if instruction.out else []


def _data(value: Any, operands: Mapping[int, Value]) -> Any:
    """An argument with the data of its slots."""
    if isinstance(value, Slot):
        return operands[value.index].data
    if isinstance(value, list | tuple):
        return [_data(each, operands) for each in value]
    return value
