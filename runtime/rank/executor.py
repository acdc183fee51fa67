"""The executor of one rank: runs a program's forward, and its backward given the tangents.

A pipeline's forward runs the backward, too, and keeps the gradients in its frame; the backward scales them.

Instructions are translated to Python functions (`translate.py`) once per program and bound once per rank. Measured
cost beyond the ops themselves: under 0.1 us an instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..communicator import Communicator
from ..errors import RowCountError, RunError, instruction_name, source_span
from ..implementations.binding import bindings
from ..program.entries import Entry
from ..program.ops import COLLECTIVES, torch_op
from ..program.program import Program
from ..program.rank_ops import RankOps
from ..program.records import Input, Instruction, Output
from .frees_watch import FreesWatch, open_watch
from .in_place_sums import add_in_place
from .nan_watch import NanFound, NanWatch, first_with_nan, is_detecting
from .shards import valid_part
from .state_writes import past_the_end, writing_into
from .step_trace import TraceWatch, open_trace
from .translate import FILENAME, INTO, Translation, translate

_OP_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""The exceptions that a torch op raises for arguments that it cannot take."""


Forward = Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]
Backward = Callable[[list[Tensor]], list[Tensor]]


class Frame:
    """The values that one forward saves for its backward, which runs once. Several frames may be outstanding."""

    def __init__(self, values: list[Tensor]) -> None:
        self._values: list[Tensor] | None = values

    def take(self) -> list[Tensor]:
        """Remove and return the saved values. Raises RunError E0332 where they were taken before."""
        values, self._values = self._values, None
        if values is None:
            raise RunError(
                "E0332",
                "backward was already run for this forward, and its saved values were freed",
                help="run the forward again; for a sum of losses, add them before calling backward()",
            )
        return values


class Executor:
    """Runs `program` as the rank of `communicator`, with tensors on `device`."""

    def __init__(self, program: Program, communicator: Communicator, device: torch.device | str = "cpu") -> None:
        self.program = program
        self.communicator = communicator
        self.device = torch.device(device)
        self.entry = program.validated.entry_of(communicator.rank)
        self._bindings = bindings(program, self.device.type)
        self._translation = self._translated()
        bound = self._bind(self._translation)
        self._forward: Forward = bound["forward"]
        self._backward: Backward = scaled_gradients if self.entry.stage is not None else bound["backward"]

    def forward(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Frame]:
        """The local outputs and buffers, given the local tensors of `entry.forward_inputs`; both in program order."""
        try:
            with torch.no_grad():
                if is_detecting():
                    results, saved = self._forward_watched(inputs)
                else:
                    results, saved = self._functions(forward=True)[0](list(inputs))
        except RowCountError as error:
            raise self._with_layer(error) from None
        except _OP_FAILURES as error:
            raise self._op_failure(error) from error
        return results, Frame(saved)

    def backward(self, frame: Frame, tangents: Sequence[Tensor]) -> list[Tensor]:
        """The local gradients, given the local tangents; both in program order. The frame is empty afterwards.

        A pipeline has one tangent, which scales the gradients in the frame.
        """
        values = frame.take()
        values += tangents
        try:
            with torch.no_grad():
                return self._backward_watched(values) if is_detecting() else self._functions(forward=False)[1](values)
        except RowCountError as error:
            raise self._with_layer(error) from None
        except _OP_FAILURES as error:
            raise self._op_failure(error) from error

    def _functions(self, *, forward: bool) -> tuple[Forward, Backward]:
        """Forward and backward; where instructions are watched, those of another translation."""
        watch = open_watch(self.program) or open_trace(self.program, self.communicator.rank)
        if watch is None:
            return self._forward, self._backward
        bound = self._bind(self._translated(watched=True), watch)
        if isinstance(watch, TraceWatch):
            watch.begin(forward=forward)
        return bound["forward"], bound.get("backward", scaled_gradients)

    def _forward_watched(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The forward. Raises NanFound where a result has a NaN."""
        input_index = first_with_nan(inputs)
        cause = None if input_index is None else self.entry.forward_inputs[input_index]
        watch, bound = self._watched()
        results, saved = bound["forward"](list(inputs))
        outputs = self.entry.forward_outputs
        if self.entry.stage is not None:
            outputs = (*outputs, *self.entry.gradients)
        output_index = first_with_nan(self._valid(outputs, [*results, *saved][: len(outputs)]))
        if output_index is not None:
            raise self._nan_error(outputs[output_index], watch, cause)
        return results, saved

    def _backward_watched(self, values: list[Tensor]) -> list[Tensor]:
        watch, bound = self._watched()
        gradients: list[Tensor] = bound.get("backward", scaled_gradients)(values)
        index = first_with_nan(self._valid(self.entry.gradients, gradients))
        if index is not None:
            raise self._nan_error(self.entry.gradients[index], watch, None)
        return gradients

    def _valid(self, outputs: Sequence[Output], local: Sequence[Tensor]) -> Iterator[Tensor]:
        """The local tensors without padding."""
        for output, tensor in zip(outputs, local, strict=True):
            yield valid_part(tensor, output.shards, self.program.mesh, self.communicator.rank)

    def _watched(self) -> tuple[NanWatch, dict[str, Any]]:
        watch = NanWatch()
        return watch, self._bind(self._translated(watched=True), watch)

    def _translated(self, *, watched: bool = False) -> Translation:
        kernels = frozenset(name for name, each in self._bindings.items() if each.kernel is not None)
        return translation_of(self.program, self.entry, watched=watched, kernels=kernels)

    def _bind(
        self, translation: Translation, watch: NanWatch | FreesWatch | TraceWatch | None = None
    ) -> dict[str, Any]:
        """The Python functions of a translation, bound to this rank's communicator and device."""
        communicator, pipeline = self.communicator, self.program.pipeline
        rank_ops = RankOps(communicator, self.device, 1 if pipeline is None else pipeline.microbatches)
        own: dict[str, Callable[..., object]] = {
            "comm.all_reduce_start": communicator.all_reduce_start,
            "comm.all_gather_start": communicator.all_gather_start,
            "comm.reduce_scatter_start": communicator.reduce_scatter_start,
            "comm.all_to_all_start": communicator.all_to_all_start,
            "comm.permute_start": communicator.permute_start,
            "comm.all_to_all_rows_start": communicator.all_to_all_rows_start,
            "comm.all_reduce_coalesced_start": communicator.all_reduce_coalesced_start,
            "comm.all_gather_coalesced_start": communicator.all_gather_coalesced_start,
            "comm.reduce_scatter_coalesced_start": communicator.reduce_scatter_coalesced_start,
            "comm.send": communicator.send,
            "comm.receive_start": communicator.receive_start,
            "rank.shard": rank_ops.shard,
            "rank.offset": rank_ops.offset,
            "rank.mask": rank_ops.mask,
            "rank.random": rank_ops.random,
        }
        names: dict[str, Any] = {**translation.constants, "device": self.device, "watch": watch, "add": add_in_place}
        for name, op in translation.ops.items():
            if op.startswith(INTO):
                names[name] = writing_into(op.removeprefix(INTO))
            else:
                names[name] = own[op] if op in own else torch_op(op).call
        names.update({name: self._bindings[function].kernel for name, function in translation.kernels.items()})
        exec(translation.code, names)
        return names

    def _nan_error(self, output: Output, watch: NanWatch, cause: Input | None) -> NanFound:
        """The error for an output with a NaN; `cause` is an input that had one."""
        name = f"{output.kind} '{output.name}'" if output.name else f"{output.kind} {output.index}"
        rank = self.communicator.rank
        if cause is not None:
            return NanFound("E0336", f"rank {rank}: {name} has a NaN, and {cause.kind} '{cause.name}' already had one")
        if watch.first is None:
            return NanFound("E0336", f"rank {rank}: {name} has a NaN, and its incoming gradient already had one")
        function, index = watch.first
        instruction = self.program.functions[function].code[index]
        op = instruction.op
        place, module = self._source(function, index)
        where = (
            f"{instruction_name(self._op_name(instruction), index, function)}{f' of module {module}' if module else ''}"
        )
        error = NanFound(
            "E0336",
            f"rank {rank}: {name} has a NaN; the first NaN was made by {where}",
            span=place,
            help="the operands of this operation had no NaN: look for overflow, 0/0, or log of 0",
        )
        error.from_collective = op in ("comm.wait", *COLLECTIVES)
        return error

    def _op_failure(self, error: BaseException) -> RunError:
        """The error of an op that failed: rank, instruction, source line, and the calls that led to it."""
        steps = list(_steps(self._translation, error.__traceback__))
        reason = str(error).strip() or type(error).__name__
        if not steps:
            return RunError("E0320", f"rank {self.communicator.rank} failed before its first instruction: {reason}")
        *calls, (function, index) = steps
        instruction = self.program.functions[function].code[index]
        notes = tuple(
            (f'called by instruction {position} of "{caller}"', self._source(caller, position)[0])
            for caller, position in reversed(calls)
        )
        place, module = self._source(function, index)
        failure = RunError(
            "E0320",
            f"rank {self.communicator.rank} failed in {instruction_name(self._op_name(instruction), index, function)}"
            f"{f' of module {module}' if module else ''}: {reason}",
            span=place,
            notes=notes,
        )
        return past_the_end(self.program, steps, failure, reason) or failure

    def _with_layer(self, error: RowCountError) -> RowCountError:
        """The error with the layer whose call led to it: the function of a folded layer stands for several."""
        *calls, _ = list(_steps(self._translation, error.__traceback__)) or [("", 0)]
        layers = [module for caller, position in calls if (module := self._source(caller, position)[1])]
        message = f"layer {layers[-1]}: {error.message}" if layers else error.message
        return type(error)(error.code, message, help=error.help)

    def _op_name(self, instruction: Instruction) -> str:
        """The op of an instruction for messages: of a call for which a kernel runs, its kind and whose it is."""
        binding = self._bindings.get(str(instruction.args[0])) if instruction.op == "call" else None
        if binding is None or binding.implementation is None:
            return instruction.op
        return f"{binding.function.kind.name} by {binding.implementation.name}"

    def _source(self, function: str, index: int) -> tuple[Any, str]:
        loc = self.program.functions[function].code[index].loc
        if loc is None:
            return None, ""
        location = self.program.locations[loc]
        return source_span(location.file, location.line), location.module


def translation_of(
    program: Program, entry: Entry, *, watched: bool = False, kernels: frozenset[str] = frozenset()
) -> Translation:
    """The Python functions of an entry, made once for all ranks of this process.

    Kernels run in place of the functions in `kernels`.
    """
    key = f"{'watched ' if watched else ''}translation of {entry.name} with kernels for {sorted(kernels)}"
    cached = program.derived.get(key)
    if isinstance(cached, Translation):
        return cached
    valid = program.validated
    translation = translate(entry, valid.functions, valid.locations, watched=watched, kernels=kernels)
    program.derived[key] = translation
    return translation


def scaled_gradients(values: list[Tensor]) -> list[Tensor]:
    """The backward of a pipeline: `values` are the gradients and, last, the tangent that scales them."""
    *gradients, tangent = values
    if bool(tangent == 1):
        return gradients
    return [gradient * tangent for gradient in gradients]


def _steps(translation: Translation, trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    """The (function, instruction index) pairs of a traceback, outermost call first."""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME and trace.tb_lineno in translation.lines:
            yield translation.lines[trace.tb_lineno]
        trace = trace.tb_next
