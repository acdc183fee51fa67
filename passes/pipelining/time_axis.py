"""What each operation of `main` is over the axis of time: once a step, for each microbatch, shared, or summed up.

An operation *varies* where an operand does, or where it asks for its place on the axis. A varying operation is

- *forward* or *backward* work of a stage, where it needs a parameter (backward: the tangent of the loss too),
- *light* otherwise: it needs inputs alone, and is done wherever its result is wanted; so is what a backward wants of
  a forward's values only.

What joins microbatches (a collective over time) is *early* where something that varies needs it (a count of the loss:
of inputs alone, or the microbatches are not independent), else *late*: a sum that grows from microbatch to microbatch,
or an output of which each gives a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...diagnostics import Span, StrettoError
from ...ir.bindings import Operation, Type, Value
from ...ir.collectives import ALL_GATHER, ALL_REDUCE, COLLECTIVES, REDUCE_SCATTER
from ...ir.module import Module, callee, operations
from ...ir.operations import read
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import AxisPlacement, Shard
from ...ir.types import TensorType, from_mlir, is_tensor, to_mlir
from ..graph import Graph, Node

_SUMS = (ALL_REDUCE, REDUCE_SCATTER)


@dataclass
class TimeAxis:
    """The classes of main's nodes; see the module's docstring."""

    module: Module
    graph: Graph
    varying: set[Node] = field(default_factory=set)
    tangent: set[Node] = field(default_factory=set)
    """What depends on the tangent of the loss."""
    owned: set[Value] = field(default_factory=set)
    """Parameters, buffers that change, and what is computed of them alone."""
    anchored: set[Node] = field(default_factory=set)
    """What varies and needs a parameter."""
    early: list[Node] = field(default_factory=list)
    late: list[Node] = field(default_factory=list)
    spread: set[Node] = field(default_factory=set)
    """What belongs to no stage, but to every coordinate (`spread.py`)."""
    after: set[Node] = field(default_factory=set)
    """What is done once, when late sums are there: adds of such sums too, which commute with them."""

    def __post_init__(self) -> None:
        graph = self.graph
        self._asks = _askers(self.module)
        self._returned = {v for v, _ in graph.results}
        self._find_varying()
        tangents = [v for v, record in graph.arguments if record.get("kind") == "tangent"]
        self.tangent = graph.dependents(tangents)
        self._find_owned()
        self._find_reductions()

    @property
    def forward(self) -> list[Node]:
        """The stages' forward work, in order."""
        wanted = self.anchored - self.tangent - self.after - self.spread
        return [n for n in self.graph.nodes if n in wanted and not self.is_light(n)]

    @property
    def backward(self) -> list[Node]:
        """The stages' backward work, in order."""
        wanted = (self.anchored & self.tangent) - self.after - self.spread
        return [n for n in self.graph.nodes if n in wanted]

    @property
    def once(self) -> list[Node]:
        """What is done once a step, before microbatches or when early reductions are there."""
        others = {*self.varying, *self.after, *self.late}
        return [n for n in self.graph.nodes if n not in others]

    def is_light(self, node: Node) -> bool:
        """Whether it varies, but belongs to no stage."""
        if node not in self.varying or node in self.after or node in self.spread:
            return False
        return node not in self.anchored or (node.origin.backward and node not in self.tangent)

    def joins(self, node: Node) -> bool:
        """Whether the node is a collective over the axis of time: a sum (or maximum), or all microbatches' parts.

        Raises an internal error for other collectives over it: no placement asks for them.
        """
        if node.call is None or node.name not in COLLECTIVES or MICROBATCH not in node.call.args[1]:
            return False
        if node.name not in (ALL_REDUCE, ALL_GATHER):
            raise RuntimeError(f"{node.op} is over microbatches")
        return True

    def _find_varying(self) -> None:
        changing = {v for v, _ in self.graph.arguments if is_over_time(v)}
        for node in self.graph.nodes:
            if self.joins(node):
                continue
            if any(v in changing for v in node.operands) or self._asks_for_place(node):
                self.varying.add(node)
                changing.update(node.values)

    def _asks_for_place(self, node: Node) -> bool:
        name = node.callee
        return name in self._asks if name is not None else _asks(node.op)

    def _find_owned(self) -> None:
        graph = self.graph
        changed = {record["name"] for _, record in graph.results if record.get("kind") == "buffer"}
        for value, record in graph.arguments:
            if record.get("kind") == "parameter" or (record.get("kind") == "buffer" and record["name"] in changed):
                self.owned.add(value)
        for node in graph.nodes:
            if not any(v in self.owned or graph.maker.get(v) in self.anchored for v in node.operands):
                continue
            if node in self.varying:
                self.anchored.add(node)
            elif not self.joins(node):
                self.owned.update(node.values)

    def _find_reductions(self) -> None:
        graph = self.graph
        needed = graph.cone(v for node in self.varying for v in node.operands)
        for node in graph.nodes:
            if self.joins(node):
                (self.early if node in needed else self.late).append(node)
        for node in self.early:
            joined = [n for n in graph.cone(node.operands) if n in self.anchored]
            if joined:
                raise coupled(node, joined)
        late = [v for node in self.late for v in node.values]
        self.after = graph.dependents(late) - set(self.late)
        for node in self.late:
            if node.name == ALL_REDUCE:
                self._sink(node.operands[0])

    def _sink(self, value: Value) -> None:
        """Do after the sum over time what commutes with it and has no other use."""
        node = self.graph.maker.get(value)
        if node is None or value in self._returned:
            return
        if self.commutes(node) and len(self.graph.users[value]) == 1:
            self.after.add(node)
            for operand in dict.fromkeys(node.operands):
                self._sink(operand)

    def commutes(self, node: Node) -> bool:
        """Whether summing what it gives over time is the same as summing what it takes."""
        if node not in self.varying or node.call is None:
            return False
        if node.name == "aten.add.Tensor":
            types = {str(v.type) for v in (*node.operands, *node.values)}
            varies = all(self.graph.maker.get(v) in self.varying for v in node.operands)
            return len(node.operands) == 2 and varies and len(types) == 1 and node.call.kwargs.get("alpha", 1) == 1
        return node.name in _SUMS and node.call.args[-1] == "sum" and MICROBATCH not in node.call.args[1]


def coupled(node: Node, joined: Sequence[Node]) -> StrettoError:
    """The error for a reduction over time in the middle of the model."""
    origin = node.origin
    where = f' in "{origin.module_path}"' if origin.module_path else ""
    first = min(joined, key=lambda n: str(n.origin))
    return StrettoError(
        "E0450",
        f"the microbatches of a pipeline are not independent{where}: rows of all of them are reduced together",
        span=Span(origin.file, origin.line) if origin.file else None,
        notes=((f'what is reduced depends on parameters, such as those of "{first.origin.module_path}"', None),),
        help="use a norm of each row by itself, or say in the pipeline: per microbatch",
    )


def _asks(op: Operation) -> bool:
    """Whether an operation needs its microbatch's place on the axis of time."""
    call = read(op) if op.operation.name.startswith("comm.") else None
    if call is None or call.name not in ("comm.shard", "comm.offset", "comm.mask", "comm.random"):
        return False
    axes = [a for argument in call.args if isinstance(argument, list) for a in argument if isinstance(a, str)]
    return any(MICROBATCH in each.split(",") for each in axes)


def _askers(module: Module) -> set[str]:
    """The functions in which something asks for its place on the axis of time, also in what they call."""
    functions = module.functions()
    found = {name for name, f in functions.items() if any(_asks(op) for op in operations(f))}
    while True:
        more = {n for n, f in functions.items() if n not in found and any(callee(op) in found for op in operations(f))}
        if not more:
            return found
        found |= more


def without_time(type_: Type) -> Type:
    """The type of a value that is no longer over the axis of time, of the same local shape."""
    tensor = from_mlir(type_)
    kept = tuple((axis, p) for axis, p in tensor.placement if axis != MICROBATCH)
    return to_mlir(TensorType(tensor.dtype, tensor.shape, kept, tensor.extents))


def in_time(tensor: TensorType, placement: AxisPlacement) -> TensorType:
    """The type of a value that is over the axis of time in this way, of the same local shape."""
    return replace(tensor, placement=tuple(sorted((*tensor.placement, (MICROBATCH, placement)), key=lambda p: p[0])))


def is_over_time(value: Value) -> bool:
    """Whether the value's type says that microbatches differ in it."""
    return is_tensor(value.type) and any(axis == MICROBATCH for axis, _ in from_mlir(value.type).placement)


def cut_dim(type_: Type) -> int | None:
    """The dim of a value that is cut into microbatches."""
    placement = dict(from_mlir(type_).placement).get(MICROBATCH)
    return placement.dim if isinstance(placement, Shard) else None


def whole(type_: Type, count: int) -> Type:
    """The type of a value of which all of `count` microbatches are there."""
    dim, tensor = cut_dim(type_), from_mlir(without_time(type_))
    if dim is None:
        return to_mlir(tensor)
    return grown(to_mlir(tensor), dim, count)


def grown(type_: Type, dim: int, count: int) -> Type:
    """The type of `count` values of a type behind each other along a dim."""
    tensor = from_mlir(type_)
    shape = tuple(n * count if at == dim else n for at, n in enumerate(tensor.shape))
    return to_mlir(TensorType(tensor.dtype, shape, tensor.placement, tensor.extents))
