"""Run a module of any level on global tensors: one evaluation at level `aten`, all ranks in turn at level `comm`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..module import Level, Module, Record
from . import memory
from .code import Code, decode
from .cutting import cut, join
from .errors import DEADLOCK, INPUTS, UNLIKE, DeadlockError, InterpreterError
from .evaluate import Evaluator
from .exchange import Exchange
from .grid import Grid
from .machine import Machine
from .observing import Observer
from .padding import Padding
from .precision import Floats


def run(
    module: Module,
    inputs: Sequence[Tensor],
    *,
    floats: Floats = Floats.AS_IS,
    padding: Padding = Padding.NAN,
    max_bytes: int | None = None,
    observer: Observer | None = None,
) -> list[Tensor]:
    """The global results of `main` on global inputs, in the order of its arguments and results.

    With FLOAT64 floating inputs of any dtype are taken and raised. `max_bytes` (default: half of the machine's memory)
    is compared with an estimate before anything runs; what an observer keeps is not in the estimate.
    Errors: InterpreterError E0651 to E0659, DeadlockError among them.
    """
    code = decode(module)
    memory.check(code, floats, max_bytes)
    return _run([code] * grid_of(code).ranks, inputs, floats, padding, observer)


def run_ranks(
    modules: Sequence[Module],
    inputs: Sequence[Tensor],
    *,
    floats: Floats = Floats.AS_IS,
    padding: Padding = Padding.NAN,
    max_bytes: int | None = None,
    observer: Observer | None = None,
) -> list[Tensor]:
    """As `run`, with a module of its own for each rank, all of one mesh and with the same arguments and results.

    A module object that appears several times is decoded once. E0660 for modules that do not go together.
    """
    decoded = {id(m): decode(m) for m in modules}
    codes = [decoded[id(m)] for m in modules]
    _check_together(codes)
    memory.check(codes[0], floats, max_bytes)
    return _run(codes, inputs, floats, padding, observer)


def estimate(module: Module, floats: Floats = Floats.AS_IS) -> memory.Estimate:
    """The bytes that running a module takes, told from its types."""
    return memory.estimate(decode(module), floats)


def result_name(record: Record, index: int) -> str:
    """What a result (or an argument) is called in messages."""
    kind, name = record.get("kind", ""), record.get("name", "")
    return " ".join(part for part in (str(kind), str(name)) if part) or f"number {index}"


def grid_of(code: Code) -> Grid:
    """The ranks that run a module: one at level `aten`."""
    return Grid(code.mesh if code.level is Level.COMM else ())


def _run(
    codes: Sequence[Code],
    inputs: Sequence[Tensor],
    floats: Floats,
    padding: Padding,
    observer: Observer | None = None,
) -> list[Tensor]:
    code = codes[0]
    grid = grid_of(code)
    given = _checked(code, inputs, floats)
    types = code.argument_types()
    evaluator, exchange = Evaluator(grid, code.level, floats, padding), Exchange(grid)
    machines = [Machine(rank, c, evaluator, exchange, floats, observer) for rank, c in enumerate(codes)]
    with torch.no_grad(), floats.defaults():
        for m in machines:
            local = code.level is Level.COMM
            m.begin([cut(g, t, m.rank, grid, padding) if local else g for g, t in zip(given, types, strict=True)])
        _schedule(machines)
        return _joined(code, machines, grid)


def _schedule(machines: Sequence[Machine]) -> None:
    """Let every rank run as far as it can, again and again; DeadlockError E0657 when none can."""
    while not all(m.is_done for m in machines):
        moved = [m.advance() for m in machines]
        if not any(moved):
            stuck = tuple(m.stuck() for m in machines if not m.is_done)
            finished = tuple(m.rank for m in machines if m.is_done)
            raise DeadlockError(DEADLOCK, "ranks wait for each other for ever", stuck, finished=finished)


def _joined(code: Code, machines: Sequence[Machine], grid: Grid) -> list[Tensor]:
    held = [m.results or [] for m in machines]
    if code.level is Level.ATEN:
        return held[0]
    records = code.main.result_records
    return [
        join([values[i] for values in held], type_, grid, result_name(records[i], i))
        for i, type_ in enumerate(code.result_types())
    ]


def _checked(code: Code, inputs: Sequence[Tensor], floats: Floats) -> list[Tensor]:
    types, records = code.argument_types(), code.main.argument_records
    if len(inputs) != len(types):
        raise InterpreterError(INPUTS, f'{len(inputs)} inputs are given, but "main" takes {len(types)}')
    made = []
    for i, (tensor, type_) in enumerate(zip(inputs, types, strict=True)):
        value = tensor.to(floats.of(tensor.dtype))
        shape, dtype = code.global_shape(type_), floats.of(type_.dtype)
        if tuple(value.shape) != shape or value.dtype != dtype:
            name = result_name(records[i], i)
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise InterpreterError(INPUTS, f'input "{name}" is {found}, but "main" takes {dtype} {shape}')
        made.append(value)
    return made


def _check_together(codes: Sequence[Code]) -> None:
    if not codes or any(c.level is not Level.COMM for c in codes):
        raise InterpreterError(UNLIKE, "a module for each rank needs modules of level comm")
    first = codes[0]
    if len(codes) != Grid(first.mesh).ranks:
        raise InterpreterError(UNLIKE, f"{len(codes)} modules are given for {Grid(first.mesh).ranks} ranks")
    for rank, code in enumerate(codes):
        same = code.mesh == first.mesh and code.argument_types() == first.argument_types()
        if not same or code.result_types() != first.result_types():
            raise InterpreterError(
                UNLIKE, f"the module of rank {rank} has another mesh or signature than that of rank 0"
            )
