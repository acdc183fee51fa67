"""The executor of one rank whose lanes are streams: the forward and the backward of a program, by the issuing code.

It has the interface of `runtime/rank/executor.py`, which runs the same program with one Python function an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...runtime.communicator import Communicator
from ...runtime.program.program import Program
from ...runtime.rank.executor import Frame, scaled_gradients
from .issue import issue
from .logging_device import LoggingDevice
from .planning import steps_of
from .steps import Part, Step, Value
from .stream_log import Entry
from .tensor_device import InOrder, Kernels, Streams, TensorDevice


class StreamExecutor:
    """Runs `program` as the rank of `communicator`. Without `streams`, on a CPU and in order.

    The program must state the types of its slots. What was issued last is in `log`. `watch` is called behind each
    communication, while its stream is torch's current one: there `CudaStreams.event_here` gives a watchdog its event.
    """

    def __init__(
        self,
        program: Program,
        communicator: Communicator,
        device: torch.device | str = "cpu",
        streams: Streams | None = None,
        kernels: Kernels | None = None,
        watch: Callable[[Step], None] | None = None,
    ) -> None:
        pipeline = program.pipeline
        self._entry = program.entry_of(communicator.rank)
        self._steps = steps_of(program, communicator.rank, kernels=kernels or ())
        inner = TensorDevice(
            communicator,
            torch.device(device),
            streams or InOrder(),
            1 if pipeline is None else pipeline.microbatches,
            kernels,
            watch,
        )
        self._device = LoggingDevice(inner, program, communicator.rank)
        self._saved: list[Value] = self._needed_later()

    @property
    def log(self) -> list[Entry]:
        """All that was issued since this was made."""
        return self._device.log

    def forward(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Frame]:
        """The local outputs and buffers, given the local tensors of `entry.forward_inputs`; both in program order."""
        results = self._run(self._steps.forward, inputs)
        if self._entry.stage is not None:
            count = len(self._entry.forward_outputs)
            return results[:count], Frame(results[count:])
        frame = Frame([value.data for value in self._saved])
        for value in self._saved:
            value.data = None
        return results, frame

    def backward(self, frame: Frame, tangents: Sequence[Tensor]) -> list[Tensor]:
        """The local gradients, given the local tangents; both in program order. The frame is empty afterwards."""
        if self._entry.stage is not None:
            return scaled_gradients([*frame.take(), *tangents])
        for value, data in zip(self._saved, frame.take(), strict=True):
            value.data = data
        gradients = self._run(self._steps.backward, tangents)
        for value in self._saved:
            value.data = None
        return gradients

    def _run(self, part: Part, given: Sequence[Tensor]) -> list[Tensor]:
        for value, tensor in zip(part.taken, given, strict=True):
            value.data = tensor
        with torch.no_grad():
            self._device.given(part.taken)
            issue(part.steps, self._device)
        return [value.data for value in part.given]

    def _needed_later(self) -> list[Value]:
        """The values that the forward makes or takes, and the backward reads or gives."""
        late = [value for step in self._steps.backward.steps for value in step.operands.values()]
        made = {id(value) for step in self._steps.backward.steps for value in step.results}
        wanted = {id(v): v for v in (*late, *self._steps.backward.given) if id(v) not in made}
        tangents = {id(value) for value in self._steps.backward.taken}
        return [value for key, value in wanted.items() if key not in tangents]
