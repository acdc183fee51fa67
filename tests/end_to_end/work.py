"""The work of a compiled program: FLOPs of one step on one rank."""

from __future__ import annotations

from stretto.costs.compute import flops
from stretto.driver.compile.request import Compiled
from stretto.ir.module import Module, callee, operations
from stretto.ir.operations import read


def flops_of(compiled: Compiled) -> float:
    """Of one step on one rank, from the shapes of its operations."""
    module = Module.parse(compiled.program.ir)
    functions = module.functions()

    def of(name: str) -> float:
        total = 0.0
        for op in operations(functions[name]):
            called, call = callee(op), read(op)
            if called is not None:
                total += of(called)
            elif call is not None and call.name.startswith("aten."):
                total += flops(call, list(op.results))
        return total

    return of("main")
