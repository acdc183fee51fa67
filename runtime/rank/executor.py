"""One rank runs a program: forward, and backward once the tangents are known.

In a pipeline the forward runs the backward, too, and its frame holds the gradients; the backward multiplies them.

The instructions are Python functions (`translate.py`), made once per program and bound once per rank. Measured cost
beyond the ops themselves: under 0.1 us an instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..communicator import Communicator
from ..errors import RunError, instruction_name, place_of
from ..program.entries import Entry
from ..program.ops import COLLECTIVES, torch_op
from ..program.program import Program
from ..program.rank_ops import RankOps
from ..program.records import Input, Output
from .in_place_sums import added
from .nan_watch import NanFound, NanWatch, first_with_nan, is_asked
from .shards import valid_part
from .translate import FILENAME, Translation, translate

_OP_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""What a torch op raises when it cannot do what it was asked."""


Forward = Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]
Backward = Callable[[list[Tensor]], list[Tensor]]


class Frame:
    """What one forward keeps for its backward; used up by it. Several may be outstanding."""

    def __init__(self, values: list[Tensor]) -> None:
        self._values: list[Tensor] | None = values

    def take(self) -> list[Tensor]:
        """The kept values; the frame is empty afterwards, and raises RunError when it was so before."""
        values, self._values = self._values, None
        if values is None:
            raise RunError(
                "E0332",
                "backward was already run for this forward, and what it had kept was freed",
                help="run the forward again; for a sum of losses, add them before calling backward()",
            )
        return values


class Executor:
    """Runs `program` as the rank of `communicator`, on `device`."""

    def __init__(self, program: Program, communicator: Communicator, device: torch.device | str = "cpu") -> None:
        self.program = program
        self.communicator = communicator
        self.device = torch.device(device)
        self.entry = program.validated.entry_of(communicator.rank)
        self._translation = translation_of(program, self.entry)
        bound = self._bind(self._translation)
        self._forward: Forward = bound["forward"]
        self._backward: Backward = _multiplied if self.entry.stage is not None else bound["backward"]

    def forward(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Frame]:
        """Local inputs (the entry's early ones) to local outputs (kinds output and buffer), both in program order."""
        try:
            with torch.no_grad():
                if is_asked():
                    results, kept = self._forward_watched(inputs)
                else:
                    results, kept = self._forward(list(inputs))
        except _OP_FAILURES as error:
            raise self._explain(error) from error
        return results, Frame(kept)

    def backward(self, frame: Frame, tangents: Sequence[Tensor]) -> list[Tensor]:
        """Local tangents to local gradients, both in program order; uses the frame up.

        In a pipeline there is one tangent, by which the gradients that the frame holds are multiplied.
        """
        values = frame.take()
        values += tangents
        try:
            with torch.no_grad():
                return self._backward_watched(values) if is_asked() else self._backward(values)
        except _OP_FAILURES as error:
            raise self._explain(error) from error

    def _forward_watched(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The forward; raises NanFound where a result holds a NaN."""
        held = first_with_nan(inputs)
        watch, bound = self._watched()
        results, kept = bound["forward"](list(inputs))
        named = self.entry.results if self.entry.stage is None else (*self.entry.results, *self.entry.gradients)
        found = first_with_nan(self._valid(named, [*results, *kept][: len(named)]))
        if found is not None:
            raise self._nan(named[found], watch, None if held is None else self.entry.early[held])
        return results, kept

    def _backward_watched(self, values: list[Tensor]) -> list[Tensor]:
        watch, bound = self._watched()
        gradients: list[Tensor] = bound.get("backward", _multiplied)(values)
        found = first_with_nan(self._valid(self.entry.gradients, gradients))
        if found is not None:
            raise self._nan(self.entry.gradients[found], watch, None)
        return gradients

    def _valid(self, results: Sequence[Output], local: Sequence[Tensor]) -> Iterator[Tensor]:
        """What of the results is not padding."""
        for each, tensor in zip(results, local, strict=True):
            yield valid_part(tensor, each.shards, self.program.mesh, self.communicator.rank)

    def _watched(self) -> tuple[NanWatch, dict[str, Any]]:
        watch = NanWatch()
        return watch, self._bind(translation_of(self.program, self.entry, watched=True), watch)

    def _bind(self, translation: Translation, watch: NanWatch | None = None) -> dict[str, Any]:
        """The functions of a translation, as this rank runs them."""
        communicator, turns = self.communicator, self.program.pipeline
        rank_ops = RankOps(communicator, self.device, 1 if turns is None else turns.microbatches)
        own: dict[str, Callable[..., object]] = {
            "comm.all_reduce_start": communicator.all_reduce_start,
            "comm.all_gather_start": communicator.all_gather_start,
            "comm.reduce_scatter_start": communicator.reduce_scatter_start,
            "comm.all_to_all_start": communicator.all_to_all_start,
            "comm.send": communicator.send,
            "comm.receive_start": communicator.receive_start,
            "rank.shard": rank_ops.shard,
            "rank.offset": rank_ops.offset,
            "rank.mask": rank_ops.mask,
            "rank.random": rank_ops.random,
        }
        names: dict[str, Any] = {**translation.constants, "device": self.device, "watch": watch, "add": added}
        for name, op in translation.ops.items():
            names[name] = own[op] if op in own else torch_op(op).call
        exec(translation.code, names)
        return names

    def _nan(self, result: Output, watch: NanWatch, already: Input | None) -> NanFound:
        """What to say of a result that holds a NaN."""
        what = f"{result.kind} '{result.name}'" if result.name else f"{result.kind} {result.index}"
        rank = self.communicator.rank
        if already is not None:
            return NanFound(
                "E0336", f"rank {rank}: {what} holds a NaN, and {already.kind} '{already.name}' held one before"
            )
        if watch.first is None:
            return NanFound("E0336", f"rank {rank}: {what} holds a NaN, which its incoming gradient held before")
        function, index = watch.first
        op = self.program.functions[function].code[index].op
        place, module = self._place(function, index)
        where = f"{instruction_name(op, index, function)}{f' of module {module}' if module else ''}"
        error = NanFound(
            "E0336",
            f"rank {rank}: {what} holds a NaN; the first was made by {where}",
            span=place,
            help="the values that came into this operation were no NaNs: look for overflow, 0/0, or log of 0 there",
        )
        error.arrived = op in ("comm.wait", *COLLECTIVES)
        return error

    def _explain(self, error: BaseException) -> RunError:
        """Name rank, instruction and source line of an op's failure, and the calls that led to it."""
        steps = list(_steps(self._translation, error.__traceback__))
        what = str(error).strip() or type(error).__name__
        if not steps:
            return RunError("E0320", f"rank {self.communicator.rank} failed before its first instruction: {what}")
        *calls, (function, index) = steps
        each = self.program.functions[function].code[index]
        notes = tuple(
            (f'called by instruction {at} of "{caller}"', self._place(caller, at)[0]) for caller, at in reversed(calls)
        )
        place, module = self._place(function, index)
        return RunError(
            "E0320",
            f"rank {self.communicator.rank} failed in {instruction_name(each.op, index, function)}"
            f"{f' of module {module}' if module else ''}: {what}",
            span=place,
            notes=notes,
        )

    def _place(self, function: str, index: int) -> tuple[Any, str]:
        loc = self.program.functions[function].code[index].loc
        if loc is None:
            return None, ""
        location = self.program.locations[loc]
        return place_of(location.file, location.line), location.module


def translation_of(program: Program, entry: Entry, *, watched: bool = False) -> Translation:
    """The Python functions of an entry, made once for all ranks of this process."""
    name = f"{'watched ' if watched else ''}translation of {entry.name}"
    known = program.kept.get(name)
    if isinstance(known, Translation):
        return known
    sound = program.validated
    fresh = translate(entry, sound.functions, sound.locations, watched=watched)
    program.kept[name] = fresh
    return fresh


def _multiplied(values: list[Tensor]) -> list[Tensor]:
    """Gradients and, last, what to multiply them by; without a gradient there is nothing to multiply."""
    *gradients, tangent = values
    if bool(tangent == 1):
        return gradients
    return [each * tangent for each in gradients]


def _steps(translation: Translation, trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    """The (function, instruction) pairs on the way to a failure, outermost first."""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME and trace.tb_lineno in translation.lines:
            yield translation.lines[trace.tb_lineno]
        trace = trace.tb_next
