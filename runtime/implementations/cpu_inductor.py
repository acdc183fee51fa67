"""Fused regions on a CPU by Inductor, torch's compiler: `stretto.use_implementations("inductor")`, before a compile.

The body of a region becomes a graph, which `torch.compile` compiles at the first call. That needs a C++ compiler and
takes seconds for each distinct region; torch keeps the result on disk for later runs. The implementation is not the
default, because steps were no quicker by it (benchmarks/README.md).
"""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from ...ops.table import Layout
from ..program.arguments import Slot
from ..program.ops import torch_op
from .registry import Implementation, Kernel, KindFunction

KIND = "region"
_COMPILERS = ("g++", "clang++", "c++")
_ONE_AT_A_TIME = threading.Lock()
"""Rank threads share a kernel; torch's compiler has state of the process."""
_LEAST_ELEMENTS = 1 << 20
"""Elements that the body's ops write: for less, the call of the compiled code takes longer than it saves.

Measured at 131,072 to 2 million elements a tensor, in float32: a call has 50 us of its own, and regions that write half
of this took as long either way or longer, others from 0.4 to 0.9 of their ops.
"""
_VIEWS = frozenset(
    ["expand", "permute", "reshape", "select", "slice", "squeeze", "t", "transpose", "unsqueeze", "view"]
)


@dataclass
class InductorRegion:
    """Runs a region; it is compiled at the first call."""

    function: KindFunction
    _run: Callable[..., tuple[Tensor, ...]] | None = field(default=None, repr=False)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._run is None:
            with _ONE_AT_A_TIME:
                if self._run is None:
                    return self._first(inputs)
        return self._run(*inputs)

    def _first(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Compile for these inputs and run; the body's ops where torch cannot compile them, with a warning."""
        body = graph_of(self.function)
        compiled = torch.compile(body, dynamic=False, fullgraph=True)
        try:
            results: tuple[Tensor, ...] = compiled(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())
            warnings.warn(f"{self.function.name} is not compiled, its ops run: {reason}", stacklevel=2)
            self._run = body
            return body(*inputs)  # type: ignore[no-any-return]
        self._run = compiled if _are_apart(results) else _with_own_memory(compiled)
        return self._run(*inputs)


def graph_of(function: KindFunction) -> fx.GraphModule:
    """The body of a function as a module that takes its arguments and gives a tuple of its results."""
    graph = fx.Graph()
    nodes: dict[int, fx.Node] = {slot: graph.placeholder(f"v{slot}") for slot in function.body.arguments}

    def read(value: Any, layout: Layout) -> Any:
        if isinstance(value, Slot):
            node = nodes[value.index]
            return node if layout is Layout.ANY else graph.call_method("contiguous", (node,))
        if isinstance(value, list | tuple):
            return [read(item, layout) for item in value]
        return value

    for instruction in function.body.code:
        op = torch_op(instruction.op)
        keywords = {key: read(value, op.layout) for key, value in instruction.kwargs.items()}
        if op.is_factory:
            keywords["device"] = torch.device("cpu")
        arguments = tuple(read(value, op.layout) for value in instruction.args)
        made = graph.call_function(op.overload, arguments, keywords)
        if op.gives_list:
            slots = [(place, slot) for place, slot in enumerate(instruction.out) if slot is not None]
            nodes.update({slot: graph.call_function(_item, (made, place)) for place, slot in slots})
        elif instruction.out[0] is not None:
            nodes[instruction.out[0]] = made
    graph.output(tuple(nodes[slot] for slot in function.body.results))
    return fx.GraphModule(torch.nn.Module(), graph)


def _item(values: Any, place: int) -> Any:
    return values[place]


def _are_apart(results: tuple[Tensor, ...]) -> bool:
    """Whether no two results share memory, as equal ones may."""
    return len({each.untyped_storage().data_ptr() for each in results}) == len(results)


def _with_own_memory(compiled: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *inputs: tuple(each.clone() for each in compiled(*inputs))


def _build(function: KindFunction, target: str) -> Kernel | None:
    return None if _why_not(function, target) else InductorRegion(function)


def _why_not(function: KindFunction, target: str) -> str:
    if os.environ.get("CXX") is None and not any(map(shutil.which, _COMPILERS)):
        return "there is no C++ compiler"
    return "" if _written(function) >= _LEAST_ELEMENTS else f"it writes fewer than {_LEAST_ELEMENTS} elements"


def _written(function: KindFunction) -> int:
    """The elements that the body's ops write, views left out."""
    working = [each for each in function.body.code if each.op.split(".")[1] not in _VIEWS]
    types = [function.types[slot] for each in working for slot in each.writes()]
    return sum(prod(each.shape) for each in types if each is not None)


def _workspace(function: KindFunction, target: str) -> int:
    """All values in between: Inductor keeps some of them in memory, and says beforehand neither which nor when."""
    ports = {*function.body.arguments, *function.body.results}
    return sum(each.bytes for slot, each in enumerate(function.types) if each is not None and slot not in ports)


INDUCTOR = Implementation("Inductor", (KIND,), ("cpu",), _build, _workspace, _why_not)
