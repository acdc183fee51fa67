"""One rank of a program, as a generator that yields where it has to wait for other ranks."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...ir.collectives import COLLECTIVES, RECEIVE_START, SEND, STARTS, WAIT, synchronous
from ...ir.interpreter.code import Step
from ...ir.interpreter.errors import FAILED, FUTURE, NO_MEANING, SLOT, WRONG_TYPE, InterpreterError, Stuck
from ...ir.interpreter.evaluate import Evaluator, ExecutionPoint
from ...ir.interpreter.exchange import Exchange, Future
from ...ir.interpreter.transfers import PendingReceive, Transfers
from ...ir.pipelined_module import MICROBATCH, Microbatch, select_microbatch
from ...runtime.program.arguments import fill_in
from ...runtime.program.records import Function, Instruction
from .program_records import ProgramRecords
from .rank_ops import RankOps
from .tensors import FLOATS

CALL = "call"
TURN = "microbatch_index"
"""The keyword of an instruction for its microbatch's position among those of its function's call."""

Handle = Future | PendingReceive
Waiting = Generator[None, None, None]
Slots = dict[int, Any]
"""The values that are set, by slot."""


@dataclass(frozen=True)
class ProgramStep(Step):
    """An instruction, as messages name it."""

    position: int = 0
    function: str = ""

    def __str__(self) -> str:
        return f'instruction {self.position} of "{self.function}", "{self.name}" ({self.origin})'


@dataclass
class Rank:
    """The state of one rank."""

    rank: int
    program: ProgramRecords
    evaluator: Evaluator
    exchange: Exchange
    transfers: Transfers
    waiting: Handle | None = None
    """What it waits for, while it waits."""
    step: ProgramStep | None = None
    """The instruction that runs, or waits."""
    results: dict[int, Tensor] | None = None
    """By position among the program's outputs; set when the rank is done."""

    def __post_init__(self) -> None:
        self._open: dict[int, Handle] = {}

    def run(self, inputs: Mapping[int, Tensor], tangents: Mapping[int, Tensor]) -> Waiting:
        """Run the entry, given local tensors by slot. Tangents are set when the forward has ended."""
        entry = self.program.entry_of(self.rank)
        function = self.program.function(entry.function)
        slots: Slots = dict(inputs)
        split = entry.ends_forward_at
        yield from self._code(entry.function, function, range(split), slots, None)
        early = {i: self._result(slots, slot, o.name) for i, o, slot in entry.outputs if o.kind != "gradient"}
        slots.update(tangents)
        yield from self._code(entry.function, function, range(split, len(function.code)), slots, None)
        late = {i: self._result(slots, slot, o.name) for i, o, slot in entry.outputs if o.kind == "gradient"}
        for handle in self._open.values():
            raise InterpreterError(FUTURE, f"rank {self.rank} never waits for {handle.step}")
        self.results = early | late

    def stuck(self) -> Stuck:
        """The instruction at which the rank waits, and the ranks that it waits for."""
        assert self.step is not None, "a rank that waits has begun"
        return Stuck(self.rank, self.step.name, self.step.origin, self.waiting.missing if self.waiting else ())

    def _code(
        self, name: str, function: Function, positions: range, slots: Slots, microbatch: Microbatch | None
    ) -> Waiting:
        for position in positions:
            instruction = function.code[position]
            self.step = self._named(instruction, position, name)
            yield from self._instruction(instruction, slots, microbatch)
            for slot in instruction.free:
                if slot not in slots:
                    raise InterpreterError(SLOT, f"rank {self.rank}: {self.step} frees slot {slot}, which is not set")
                del slots[slot]

    def _instruction(self, instruction: Instruction, slots: Slots, microbatch: Microbatch | None) -> Waiting:
        step = self._current
        args = [fill_in(value, lambda slot: self._read(slots, slot)) for value in instruction.args]
        kwargs = {
            key: fill_in(value, lambda slot: self._read(slots, slot)) for key, value in instruction.kwargs.items()
        }
        if instruction.op == CALL:
            yield from self._call(instruction, args, kwargs, slots, microbatch)
            return
        if instruction.op == WAIT:
            handle = self._handle(args[0])
            while not handle.is_ready:
                self.waiting = handle
                yield
            self.waiting, self.step = None, step
            self._open.pop(id(handle), None)
            self._store(instruction, slots, [handle.take()])
            return
        results = self._results(instruction, args, kwargs, select_microbatch(microbatch, self._turn(kwargs)))
        self._store(instruction, slots, results)

    def _results(
        self, instruction: Instruction, args: list[Any], kwargs: dict[str, Any], microbatch: Microbatch | None
    ) -> list[Any]:
        """The results of an instruction that does not wait."""
        op, step = instruction.op, self._current
        self._refuse_handles(args, kwargs)
        if op == SEND:
            self.transfers.send(self.rank, step, args[0], kwargs["axis"], kwargs["peer"])
            return []
        if op in STARTS:
            handles = self._started(op, args, kwargs)
            self._open.update({id(handle): handle for handle in handles})
            return [*handles]
        single = None if isinstance(microbatch, tuple) else microbatch
        try:
            if op.startswith("rank."):
                result: Any = RankOps(self.program.grid, self.rank, single).run(op, args, kwargs)
            else:
                result = self.evaluator.evaluate(op, ExecutionPoint(self.rank, single), args, kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError) as error:
            raise InterpreterError(FAILED, f"rank {self.rank}: {step} fails: {error}") from None
        return list(result) if isinstance(result, list | tuple) else [] if result is None else [result]

    def _started(self, op: str, args: list[Any], kwargs: dict[str, Any]) -> Sequence[Handle]:
        if op == RECEIVE_START:
            size, dtype = tuple(kwargs["size"]), FLOATS.of(kwargs["dtype"])
            return [self.transfers.receive(self.rank, self._current, kwargs["axis"], kwargs["peer"], size, dtype)]
        known = COLLECTIVES[synchronous(op)]
        if kwargs.keys() != {*known.arguments} or len(args) != 1 or isinstance(args[0], list) != bool(known.coalesces):
            what = "a list of tensors" if known.coalesces else "one tensor"
            raise InterpreterError(NO_MEANING, f"{self._current} takes {what} and {', '.join(sorted(known.arguments))}")
        counts = [kwargs[name] for name in known.counts]
        if not all(isinstance(each, Tensor) for each in counts):
            raise InterpreterError(NO_MEANING, f"{self._current} takes tensors as {', '.join(known.counts)}")
        tensors = args[0] if known.coalesces else [*args, *counts]
        options = {name: value for name, value in kwargs.items() if name not in known.counts}
        return self.exchange.start(self.rank, self._current, tensors, options)

    def _call(
        self,
        instruction: Instruction,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        slots: Slots,
        microbatch: Microbatch | None,
    ) -> Waiting:
        step = self._current
        name, values = str(args[0]), args[1]
        function = self.program.function(name)
        if (len(values), len(instruction.out)) != (len(function.arguments), len(function.results)):
            raise InterpreterError(NO_MEANING, f'{step}: "{name}" takes or returns another number of values')
        index = kwargs.get(MICROBATCH)
        chosen = select_microbatch(microbatch, self._turn(kwargs)) if index is None else _microbatch(index)
        frame: Slots = dict(zip(function.arguments, values, strict=True))
        yield from self._code(name, function, range(len(function.code)), frame, chosen)
        self.step = step
        self._store(instruction, slots, [self._result(frame, slot, "") for slot in function.results])

    def _store(self, instruction: Instruction, slots: Slots, results: list[Any]) -> None:
        if instruction.writes() and len(results) != len(instruction.out):
            raise InterpreterError(
                WRONG_TYPE, f"{self._current} gives {len(results)} results, but has {len(instruction.out)} slots"
            )
        for slot, value in zip(instruction.out, results, strict=False):
            if slot is not None:
                slots[slot] = value

    def _read(self, slots: Slots, slot: int) -> Any:
        if slot not in slots:
            raise InterpreterError(
                SLOT,
                f"rank {self.rank}: {self._current} reads slot {slot}, which is not set",
                help="it was freed before its last use, or nothing wrote it",
            )
        return slots[slot]

    def _result(self, slots: Slots, slot: int, name: str) -> Any:
        if slot not in slots:
            result = f'"{name}"' if name else f"of {self._current.function}"
            raise InterpreterError(SLOT, f"rank {self.rank}: the result {result} in slot {slot} is not set at the end")
        return slots[slot]

    def _handle(self, value: Any) -> Handle:
        if not isinstance(value, Handle):
            raise InterpreterError(FUTURE, f"rank {self.rank}: {self._current} waits on a value that is not a future")
        if value.is_taken:
            raise InterpreterError(FUTURE, f"rank {self.rank} waits twice for {value.step}")
        return value

    def _refuse_handles(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        flat = [item for value in (*args, *kwargs.values()) for item in (value if isinstance(value, list) else [value])]
        if any(isinstance(item, Handle) for item in flat):
            raise InterpreterError(FUTURE, f"rank {self.rank}: {self._current} takes a future that was not waited on")

    def _turn(self, kwargs: dict[str, Any]) -> int | None:
        """Remove and return the microbatch's position."""
        turn = kwargs.pop(TURN, None)
        return None if turn is None else int(turn)

    @property
    def _current(self) -> ProgramStep:
        assert self.step is not None, "an instruction runs"
        return self.step

    def _named(self, instruction: Instruction, position: int, function: str) -> ProgramStep:
        origin = self.program.origin(instruction.loc)
        message = _message(instruction)
        return ProgramStep(instruction.op, message, {}, (), (), origin, position=position, function=function)


def _message(instruction: Instruction) -> tuple[Any, ...]:
    """The arguments of a send or receive in the order of the module's operation, where it says what it carries."""
    kwargs = instruction.kwargs
    if "carries" not in kwargs:
        return ()
    if instruction.op == SEND:
        return (None, kwargs["axis"], kwargs["peer"], kwargs["carries"])
    return (kwargs["axis"], kwargs["peer"], kwargs["size"], kwargs["dtype"], kwargs["carries"])


def _microbatch(value: Any) -> Microbatch:
    return tuple(value) if isinstance(value, list | tuple) else int(value)
