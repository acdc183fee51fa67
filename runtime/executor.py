"""One rank runs a program: forward, and backward once the tangents are known.

The instructions are Python functions (`translate.py`), made once per program and bound once per rank. Measured cost
beyond the ops themselves: under 0.1 us an instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .communicator import Communicator
from .errors import RunError, instruction_name, place_of
from .nan_watch import NanFound, NanWatch, first_with_nan, is_asked
from .ops import COLLECTIVES, torch_op
from .program import Program
from .rank_ops import RankOps
from .records import Input, Output
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
        self._translation = translation_of(program)
        bound = _bind(self._translation, communicator, self.device)
        self._forward: Forward = bound["forward"]
        self._backward: Backward = bound["backward"]
        self._given = [each for each in program.inputs if each.kind != "tangent"]
        self._results = [each for each in program.outputs if each.kind != "gradient"]
        self._gradients = program.results_of_kind("gradient")

    def forward(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Frame]:
        """Local inputs (all kinds but tangents) to local outputs (kinds output and buffer), both in program order."""
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
        """Local tangents to local gradients, both in program order; uses the frame up."""
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
        found = first_with_nan(self._valid(self._results, results))
        if found is not None:
            already = None if held is None else self._given[held]
            raise self._nan(self._results[found], watch, already)
        return results, kept

    def _backward_watched(self, values: list[Tensor]) -> list[Tensor]:
        watch, bound = self._watched()
        gradients: list[Tensor] = bound["backward"](values)
        found = first_with_nan(self._valid(self._gradients, gradients))
        if found is not None:
            raise self._nan(self._gradients[found], watch, None)
        return gradients

    def _valid(self, results: Sequence[Output], local: Sequence[Tensor]) -> Iterator[Tensor]:
        """What of the results is not padding."""
        for each, tensor in zip(results, local, strict=True):
            yield valid_part(tensor, each.shards, self.program.mesh, self.communicator.rank)

    def _watched(self) -> tuple[NanWatch, dict[str, Any]]:
        watch = NanWatch()
        translation = translation_of(self.program, watched=True)
        return watch, _bind(translation, self.communicator, self.device, watch)

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


def translation_of(program: Program, *, watched: bool = False) -> Translation:
    """The Python functions of a program, made once for all ranks of this process."""
    name = "watched translation" if watched else "translation"
    known = program.kept.get(name)
    if isinstance(known, Translation):
        return known
    sound = program.validated
    fresh = translate(sound.inputs, sound.outputs, sound.functions, sound.locations, watched=watched)
    program.kept[name] = fresh
    return fresh


def _bind(
    translation: Translation, communicator: Communicator, device: torch.device, watch: NanWatch | None = None
) -> dict[str, Any]:
    rank_ops = RankOps(communicator, device)
    own: dict[str, Callable[..., object]] = {
        "comm.all_reduce_start": communicator.all_reduce_start,
        "comm.all_gather_start": communicator.all_gather_start,
        "comm.reduce_scatter_start": communicator.reduce_scatter_start,
        "comm.all_to_all_start": communicator.all_to_all_start,
        "rank.shard": rank_ops.shard,
        "rank.offset": rank_ops.offset,
        "rank.mask": rank_ops.mask,
        "rank.random": rank_ops.random,
    }
    names: dict[str, Any] = {**translation.constants, "device": device, "watch": watch}
    for name, op in translation.ops.items():
        names[name] = own[op] if op in own else torch_op(op).call
    exec(translation.code, names)
    return names


def _steps(translation: Translation, trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    """The (function, instruction) pairs on the way to a failure, outermost first."""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME and trace.tb_lineno in translation.lines:
            yield translation.lines[trace.tb_lineno]
        trace = trace.tb_next
