"""What a compiled program sends: each collective of its final IR, once per call of the function that it stands in."""

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
    """One collective: what a rank gives and gets (local shapes), and where it stands."""

    kind: str
    """all_reduce, all_gather, reduce_scatter or all_to_all."""
    axes: tuple[str, ...]
    given: tuple[int, ...]
    made: tuple[int, ...]
    function: str
    backward: bool
    module_path: str


def messages(compiled: Compiled) -> list[Message]:
    """Every collective that one step runs, in the order of the functions' code."""
    module = Module.parse(compiled.program.ir)
    functions = module.functions()

    def of(name: str) -> list[Message]:
        found: list[Message] = []
        for op in operations(functions[name]):
            called = callee(op)
            call = read(op)
            if called is not None:
                found += of(called)
            elif call is not None and call.name.endswith("_start"):
                found.append(_message(name, call.name, tuple(call.args[1]), op))
        return found

    return of("main")


def _message(function: str, name: str, axes: tuple[str, ...], op: Operation) -> Message:
    origin = from_location(op.location)
    given, made = from_mlir(op.operands[0].type).shape, from_mlir(op.results[0].type).shape
    kind = name.removeprefix("comm.").removesuffix("_start")
    return Message(kind, axes, given, made, function, origin.backward, origin.module_path)


def kinds(found: Iterable[Message]) -> dict[str, int]:
    """How many there are of each kind."""
    return dict(sorted(Counter(message.kind for message in found).items()))
