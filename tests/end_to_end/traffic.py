"""The communication of a compiled program: each collective of its final IR, once per call of its function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from stretto.driver.compile.request import Compiled
from stretto.ir.bindings import Operation
from stretto.ir.locations import from_location
from stretto.ir.module import Module, callee, operations
from stretto.ir.operations import read
from stretto.ir.types import from_mlir


@dataclass(frozen=True)
class Message:
    """One collective: operand and result on a rank (local shapes), and its place."""

    kind: str
    """all_reduce, all_gather, reduce_scatter or all_to_all."""
    axes: tuple[str, ...]
    operand_shape: tuple[int, ...]
    result_shape: tuple[int, ...]
    function: str
    backward: bool
    module_path: str


def messages(compiled: Compiled) -> list[Message]:
    """Every collective that one step runs, in the order of the functions' code."""
    module = Module.parse(compiled.program.ir)
    functions = module.functions()

    def of_function(name: str) -> list[Message]:
        sent: list[Message] = []
        for op in operations(functions[name]):
            called = callee(op)
            call = read(op)
            if called is not None:
                sent += of_function(called)
            elif call is not None and call.name.endswith("_start"):
                sent.append(_message(name, call.name, tuple(call.args[1]), op))
        return sent

    return of_function("main")


def _message(function: str, name: str, axes: tuple[str, ...], op: Operation) -> Message:
    origin = from_location(op.location)
    operand_shape, result_shape = from_mlir(op.operands[0].type).shape, from_mlir(op.results[0].type).shape
    kind = name.removeprefix("comm.").removesuffix("_start")
    return Message(kind, axes, operand_shape, result_shape, function, origin.backward, origin.module_path)


def kinds(sent: Iterable[Message]) -> dict[str, int]:
    """The number of messages of each kind."""
    return dict(sorted(Counter(message.kind for message in sent).items()))
