"""One rank of the interpreter: call frames and program counters; it runs until it waits for other ranks or is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..collectives import BLOCKING, COLLECTIVES, EXPERT_PRODUCTS, RECEIVE, STARTS, collective, synchronous
from ..dialects.schemas import definitions
from ..module import Level
from ..pipelined_module import Microbatch, select_microbatch
from ..types import TensorType
from .code import CALL, UNPACK, Body, Code, Ref, Step
from .errors import FAILED, FUTURE, NO_MEANING, WRONG_TYPE, InterpreterError, Stuck
from .evaluate import Evaluator, ExecutionPoint
from .exchange import Exchange, Future
from .observing import Observer, Path
from .precision import Floats
from .transfers import PendingReceive, Transfers

Promise = Future | PendingReceive


@dataclass
class Frame:
    """A call of a function in progress."""

    body: Body
    values: list[Any]
    microbatch: Microbatch | None = None
    """The microbatch of the call."""
    position: int = 0
    """The index of the next step."""


@dataclass
class Machine:
    """The state of one rank."""

    rank: int
    code: Code
    evaluator: Evaluator
    exchange: Exchange
    transfers: Transfers
    floats: Floats
    observer: Observer | None = None
    entry: int = 0
    """The index of its entry function."""
    frames: list[Frame] = field(default_factory=list)
    results: list[Tensor] | None = None
    """Set when the rank is done."""
    waiting: Promise | None = None
    """The started collective or receive that the next step waits for."""
    _started: list[Promise] = field(default_factory=list)
    """What the next step has started that does not return before it is done: all of a bucket."""
    _untaken: dict[int, Promise] = field(default_factory=dict)

    def begin(self, inputs: list[Any]) -> None:
        """Enter the entry function."""
        self.frames.append(_frame(self.code.entries[self.entry], inputs))

    @property
    def is_done(self) -> bool:
        return self.results is not None

    def advance(self) -> bool:
        """Run until the rank waits or is done; returns whether it ran any step."""
        moved = False
        while not self.is_done:
            frame = self.frames[-1]
            if frame.position == len(frame.body.steps):
                self._leave(frame)
            elif not self._step(frame, frame.body.steps[frame.position]):
                return moved
            moved = True
        return moved

    def stuck(self) -> Stuck:
        """The operation in which the rank waits, and for which ranks."""
        frame = self.frames[-1]
        step = frame.body.steps[frame.position]
        return Stuck(self.rank, step.name, step.origin, self.waiting.missing if self.waiting else ())

    def _step(self, frame: Frame, step: Step) -> bool:
        """Run one step; returns False, without effect, if it has to wait."""
        if self.observer is not None:
            self.observer.begins(self.rank, self._path())
        name = step.name
        if name == CALL:
            self._enter(frame, step)
            return True
        is_cut = self.code.level is Level.COMM
        if is_cut and (name in BLOCKING or name in EXPERT_PRODUCTS):
            self._started = self._started or self._start(frame, step)
            return self._await(frame, step)
        if name == "comm.wait":
            self._started = self._started or [self._future(_fill(step.args[0], frame.values), step)]
            return self._await(frame, step)
        if is_cut and name in STARTS:
            futures = self._start(frame, step)
            self._untaken.update({id(future): future for future in futures})
            frame.values[step.out[0]] = futures if _is_bucket(step) else futures[0]
        elif is_cut and name == "comm.send":
            self.transfers.send(self.rank, step, self._tensor(step.args[0], frame, step), *step.args[1:3])
        else:
            self._compute(frame, step)
        self._move_on(frame, step)
        return True

    def _move_on(self, frame: Frame, step: Step) -> None:
        for slot in step.free:
            frame.values[slot] = None
        frame.position += 1

    def _enter(self, frame: Frame, step: Step) -> None:
        """Call a function; values that the caller does not use again are released to it."""
        arguments = [_fill(a, frame.values) for a in step.args]
        for slot in set(step.free) - set(step.out):
            frame.values[slot] = None
        microbatch = select_microbatch(frame.microbatch, step.turn) if step.microbatch is None else step.microbatch
        self.frames.append(_frame(self.code.bodies[step.callee], arguments, microbatch))

    def _leave(self, frame: Frame) -> None:
        values = [frame.values[slot] for slot in frame.body.results]
        self.frames.pop()
        if not self.frames:
            self._finish(values)
            return
        caller = self.frames[-1]
        step = caller.body.steps[caller.position]
        for slot, value in zip(step.out, values, strict=True):
            caller.values[slot] = value
        self._move_on(caller, step)

    def _finish(self, values: list[Any]) -> None:
        for future in self._untaken.values():
            raise InterpreterError(FUTURE, f"rank {self.rank} never waits for {future.step}")
        self.results = values

    def _start(self, frame: Frame, step: Step) -> list[Promise]:
        name = synchronous(step.name)
        if name == RECEIVE:
            axis, peer, size, dtype = step.args[:4]
            return [self.transfers.receive(self.rank, step, axis, peer, tuple(size), self.floats.of(dtype))]
        known = EXPERT_PRODUCTS.get(name) or COLLECTIVES[name]
        options = dict(zip(known.arguments, step.args[1:], strict=True))
        operands = step.args[0] if _is_bucket(step) else [step.args[0], *(options.pop(name) for name in known.counts)]
        tensors = [self._tensor(operand, frame, step) for operand in operands]
        return [*self.exchange.start(self.rank, step, tensors, options)]

    def _tensor(self, argument: Any, frame: Frame, step: Step) -> Tensor:
        tensor = _fill(argument, frame.values)
        if not isinstance(tensor, Tensor):
            raise InterpreterError(NO_MEANING, f"rank {self.rank}: {step} takes a future that was not waited on")
        return tensor

    def _future(self, value: Any, step: Step) -> Promise:
        if not isinstance(value, Promise):
            raise InterpreterError(FUTURE, f"rank {self.rank}: {step} waits on a value that is not a future")
        if value.is_taken:
            raise InterpreterError(FUTURE, f"rank {self.rank} waits twice for {value.step}")
        return value

    def _await(self, frame: Frame, step: Step) -> bool:
        self.waiting = next((future for future in self._started if not future.is_ready), None)
        if self.waiting is not None:
            return False
        taken = [future.take() for future in self._started]
        for future in self._started:
            self._untaken.pop(id(future), None)
        self._started = []
        self._put(frame, step, [taken] if _is_bucket(step) else taken)
        self._move_on(frame, step)
        return True

    def _compute(self, frame: Frame, step: Step) -> None:
        args = [_fill(a, frame.values) for a in step.args]
        if step.name == UNPACK:
            if any(isinstance(value, Promise) for value in args[0]):
                for slot, future in zip(step.out, args[0], strict=True):
                    frame.values[slot] = future
            else:
                self._put(frame, step, args[0])
            return
        kwargs = {key: _fill(a, frame.values) for key, a in step.kwargs.items()}
        try:
            results = self.evaluator.evaluate(step.name, self._place(frame, step), args, kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise InterpreterError(FAILED, f"rank {self.rank}: {step} fails: {error}") from None
        is_single = results is None or isinstance(results, Tensor) or definitions()[step.name].results == ("Tensor[]",)
        self._put(frame, step, [results] if is_single else list(results))

    def _place(self, frame: Frame, step: Step) -> ExecutionPoint:
        microbatch = select_microbatch(frame.microbatch, step.turn)
        return ExecutionPoint(self.rank, None if isinstance(microbatch, tuple) else microbatch)

    def _put(self, frame: Frame, step: Step, results: list[Any]) -> None:
        """Store results, after checking shapes and dtypes against their types."""
        if len(results) != len(step.out):
            raise InterpreterError(WRONG_TYPE, f"{step} returns {len(results)} results, expected {len(step.out)}")
        for slot, value in zip(step.out, results, strict=True):
            type_ = frame.body.types[slot]
            if type_ is not None:
                self._check(value, type_, step)
            frame.values[slot] = value
        if self.observer is not None:
            self.observer.made(self.rank, self._path(), results)

    def _path(self) -> Path:
        steps = (frame.position for frame in self.frames)
        return tuple(steps) if self.code.axis is None else (self.entry, *steps)

    def _check(self, value: Any, type_: TensorType, step: Step) -> None:
        dtype = self.floats.of(type_.dtype)
        if not isinstance(value, Tensor) or value.dtype != dtype or tuple(value.shape) != type_.shape:
            actual = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else "no tensor"
            raise InterpreterError(WRONG_TYPE, f"{step} gives {actual}, but its type says {dtype} {type_.shape}")


def _frame(body: Body, inputs: list[Any], microbatch: Microbatch | None = None) -> Frame:
    values: list[Any] = [None] * len(body.types)
    for slot, value in zip(body.arguments, inputs, strict=True):
        values[slot] = value
    return Frame(body, values, microbatch)


def _is_bucket(step: Step) -> bool:
    """Whether a step is a collective of a list of tensors."""
    known = collective(step.name)
    return known is not None and bool(known.coalesces)


def _fill(argument: Any, values: list[Any]) -> Any:
    if isinstance(argument, Ref):
        return values[argument.slot]
    return [_fill(a, values) for a in argument] if isinstance(argument, list) else argument
