"""Run a module of any level on global tensors: one evaluation at level `aten`, all ranks in turn at level `comm`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..module import Level, Module
from . import memory
from .code import Code, decode
from .errors import DEADLOCK, INPUTS, UNLIKE, DeadlockError, InterpreterError
from .evaluate import Evaluator
from .exchange import Exchange
from .grid import Grid
from .machine import Machine
from .observing import Observer
from .padding import Padding
from .precision import Floats
from .ranks import entry_of, global_result, grid_of, local_inputs, result_name
from .transfers import RECEIVE_HELP, PendingReceive, Transfers


def run(
    module: Module,
    inputs: Sequence[Tensor],
    *,
    floats: Floats = Floats.AS_IS,
    padding: Padding = Padding.NAN,
    max_bytes: int | None = None,
    observer: Observer | None = None,
) -> list[Tensor]:
    """The module's global results on global inputs, in the order of `main`'s arguments and results.

    In a pipelined module in order, the records of arguments and results give that order.
    With FLOAT64, floating inputs of any dtype are raised. `max_bytes` (default: half of the machine's memory) caps an
    estimate of the run, without what an observer keeps.
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
    """`run` with a module per rank; all have the same mesh, arguments and results.

    A module object that appears several times is decoded once. E0660 for modules that differ in mesh or signature.
    """
    decoded = {id(m): decode(m) for m in modules}
    codes = [decoded[id(m)] for m in modules]
    _check_together(codes)
    memory.check(codes[0], floats, max_bytes)
    return _run(codes, inputs, floats, padding, observer)


def estimate(module: Module, floats: Floats = Floats.AS_IS) -> memory.Estimate:
    """The estimated memory of a run, from the module's types."""
    return memory.estimate(decode(module), floats)


def _run(
    codes: Sequence[Code],
    inputs: Sequence[Tensor],
    floats: Floats,
    padding: Padding,
    observer: Observer | None = None,
) -> list[Tensor]:
    code = codes[0]
    grid = grid_of(code)
    checked = _checked(code, inputs, floats)
    evaluator, exchange, transfers = Evaluator(grid, code.level, floats, padding), Exchange(grid), Transfers(grid)
    machines = [
        Machine(rank, c, evaluator, exchange, transfers, floats, observer, entry_of(code, grid, rank))
        for rank, c in enumerate(codes)
    ]
    with torch.no_grad(), floats.defaults():
        for m in machines:
            m.begin(local_inputs(code, grid, m.rank, checked, padding))
        _schedule(machines)
        transfers.check_taken()
        return _joined(code, machines, grid)


def _schedule(machines: Sequence[Machine]) -> None:
    """Advance every rank as far as it can until all are done; DeadlockError E0657 if none can advance."""
    while not all(m.is_done for m in machines):
        moved = [m.advance() for m in machines]
        if not any(moved):
            stuck = tuple(m.stuck() for m in machines if not m.is_done)
            finished = tuple(m.rank for m in machines if m.is_done)
            message = "ranks wait for each other for ever"
            if any(isinstance(m.waiting, PendingReceive) for m in machines):
                raise DeadlockError(DEADLOCK, message, stuck, finished=finished, help=RECEIVE_HELP)
            raise DeadlockError(DEADLOCK, message, stuck, finished=finished)


def _joined(code: Code, machines: Sequence[Machine], grid: Grid) -> list[Tensor]:
    local_results = [m.results or [] for m in machines]
    if code.level is Level.ATEN:
        return local_results[0]
    return [
        global_result(code, grid, port, local_results, result_name(port.record, i))
        for i, port in enumerate(code.results)
    ]


def _checked(code: Code, inputs: Sequence[Tensor], floats: Floats) -> list[Tensor]:
    entries = " and ".join(f'"{entry.name}"' for entry in code.entries)
    if len(inputs) != len(code.arguments):
        entry_name = "takes" if len(code.entries) == 1 else "take"
        raise InterpreterError(
            INPUTS, f"{len(inputs)} inputs are given, but {entries} {entry_name} {len(code.arguments)}"
        )
    checked = []
    for i, (tensor, port) in enumerate(zip(inputs, code.arguments, strict=True)):
        value = tensor.to(floats.of(tensor.dtype))
        shape, dtype = code.global_shape(port.type), floats.of(port.type.dtype)
        if tuple(value.shape) != shape or value.dtype != dtype:
            name = result_name(port.record, i)
            actual = f"{tensor.dtype} {tuple(tensor.shape)}"
            entry_name = next(
                entry.name for entry, position in zip(code.entries, port.places, strict=True) if position is not None
            )
            raise InterpreterError(INPUTS, f'input "{name}" is {actual}, but "{entry_name}" takes {dtype} {shape}')
        checked.append(value)
    return checked


def _check_together(codes: Sequence[Code]) -> None:
    if not codes or any(c.level is not Level.COMM for c in codes):
        raise InterpreterError(UNLIKE, 'a module per rank must have level "comm"')
    first = codes[0]
    if len(codes) != grid_of(first).ranks:
        raise InterpreterError(UNLIKE, f"there are {len(codes)} modules for {grid_of(first).ranks} ranks")
    for rank, code in enumerate(codes):
        if _signature(code) != _signature(first):
            raise InterpreterError(UNLIKE, f"the modules of ranks 0 and {rank} have different meshes or signatures")


def _signature(code: Code) -> tuple[object, ...]:
    """The mesh, pipeline axis, arguments and results of a module, which must be equal on all ranks."""
    ports = [[(port.type, port.places) for port in side] for side in (code.arguments, code.results)]
    return code.mesh, code.axis, ports
