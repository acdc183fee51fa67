"""Classify the operations of `main`: run once a step, for each microbatch, or over all microbatches.

An operation *varies* over microbatches if an operand does, if it reads its coordinate on the microbatch axis, or if its
result is one microbatch's part, such as zeros for a microbatch's rows. A varying operation is

- *forward* or *backward* work of a stage, if it needs a parameter (backward: the tangent of the loss too),
- *light* otherwise: it needs inputs only, and is recomputed wherever its result is used; so are operations of the
  backward that use values of the forward only.

Light too are gathers of a stored parameter for one use: each task that uses it gathers it.

A collective over microbatches is *late* if no varying operation needs its result: a sum accumulated over microbatches,
or an output of which each microbatch computes a part. It is *early* if it reduces what inputs alone give (the count of
a loss), and *midway* if the forward makes what it reduces and the backward alone needs it (how many tokens go to each
expert, in a balance loss). Else the microbatches are not independent.
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
from ..memory.gathers import gathers_of_uses

_SUMS = (ALL_REDUCE, REDUCE_SCATTER)


@dataclass
class MicrobatchAnalysis:
    """The classes of main's nodes; see the module's docstring."""

    module: Module
    graph: Graph
    varying: set[Node] = field(default_factory=set)
    tangent: set[Node] = field(default_factory=set)
    """Nodes that depend on the tangent of the loss."""
    owned: set[Value] = field(default_factory=set)
    """Parameters, buffers that change, and values computed from these alone."""
    anchored: set[Node] = field(default_factory=set)
    """Nodes that vary and need a parameter."""
    early: list[Node] = field(default_factory=list)
    late: list[Node] = field(default_factory=list)
    midway: list[Node] = field(default_factory=list)
    """Sums over microbatches between forwards and backwards, and what is computed of them once a step; in order."""
    shared_work: set[Node] = field(default_factory=set)
    """Nodes of no stage, of which every rank of the pipeline runs its part (`shared_work.py`)."""
    after: set[Node] = field(default_factory=set)
    """Nodes that run once, after late sums; also adds before such sums, which commute with them."""
    gathers: set[Node] = field(default_factory=set)
    """Nodes that gather stored parameters in each task that uses them; no task keeps their results for another."""

    def __post_init__(self) -> None:
        graph = self.graph
        self._coordinate_readers = _coordinate_readers(self.module)
        self._returned = {v for v, _ in graph.results}
        self._find_varying()
        tangents = [v for v, record in graph.arguments if record.get("kind") == "tangent"]
        self.tangent = graph.dependents(tangents)
        self._find_owned()
        self._find_reductions()
        self.gathers = gathers_of_uses(graph, self.varying, {*self.after, *self.late, *self.early, *self.midway})

    @property
    def forward(self) -> list[Node]:
        """The stages' forward work, in order."""
        stage_work = self.anchored - self.tangent - self.after - self.shared_work
        return [n for n in self.graph.nodes if n in stage_work and not self.is_light(n)]

    @property
    def backward(self) -> list[Node]:
        """The stages' backward work, in order."""
        stage_work = (self.anchored & self.tangent) - self.after - self.shared_work
        return [n for n in self.graph.nodes if n in stage_work]

    @property
    def once(self) -> list[Node]:
        """Nodes that run once a step, before the microbatches or after early reductions."""
        others = {*self.varying, *self.after, *self.late, *self.midway, *self.gathers}
        return [n for n in self.graph.nodes if n not in others]

    def is_light(self, node: Node) -> bool:
        """Whether a node runs in tasks, but belongs to no stage."""
        if node in self.gathers:
            return True
        if node not in self.varying or node in self.after or node in self.shared_work:
            return False
        return node not in self.anchored or (node.origin.backward and node not in self.tangent)

    def joins_microbatches(self, node: Node) -> bool:
        """Whether the node is a collective over the microbatch axis: an all-reduce or an all-gather.

        Raises an internal error for other collectives over it: no reshard needs them.
        """
        if node.call is None or node.name not in COLLECTIVES or MICROBATCH not in node.call.args[1]:
            return False
        if node.name not in (ALL_REDUCE, ALL_GATHER):
            raise RuntimeError(f"{node.op} is over microbatches")
        return True

    def _find_varying(self) -> None:
        changing = {v for v, _ in self.graph.arguments if is_over_microbatches(v)}
        for node in self.graph.nodes:
            if self.joins_microbatches(node):
                continue
            is_part = any(is_over_microbatches(v) for v in node.values)
            if is_part or any(v in changing for v in node.operands) or self._reads_coordinate(node):
                self.varying.add(node)
                changing.update(node.values)

    def _reads_coordinate(self, node: Node) -> bool:
        name = node.callee
        return name in self._coordinate_readers if name is not None else _needs_coordinate(node.op)

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
            elif not self.joins_microbatches(node):
                self.owned.update(node.values)

    def _find_reductions(self) -> None:
        graph = self.graph
        needed = graph.cone(v for node in self.varying for v in node.operands)
        for node in graph.nodes:
            if self.joins_microbatches(node):
                (self.early if node in needed else self.late).append(node)
        sums = self._take_midway()
        late = [v for node in self.late for v in node.values]
        behind = graph.dependents(v for node in sums for v in node.values) - self.varying - needed
        self.after = (graph.dependents(late) | behind) - set(self.late)
        scattered = self._scattered_each()
        for node in self.late:
            if node.name == ALL_REDUCE and node not in scattered:
                self._sink(node.operands[0])

    def _take_midway(self) -> list[Node]:
        """Move the sums that only backwards need from `early` to `midway`, with the work behind them.

        Raises E0450 for a sum that the forward needs, or that a backward has to make.
        """
        graph, sums = self.graph, list[Node]()
        for node in self.early:
            anchored = [n for n in graph.cone(node.operands) if n in self.anchored]
            if anchored:
                behind = graph.dependents(node.values) & self.varying
                by_forward = any(n not in self.tangent and not n.origin.backward for n in behind)
                if by_forward or any(n in self.tangent or self.is_light(n) for n in self._makers(node)):
                    raise coupled_microbatches(node, anchored)
                sums.append(node)
        self.early = [node for node in self.early if node not in sums]
        needed = graph.cone(v for node in self.varying for v in node.operands)
        behind = (graph.dependents(v for node in sums for v in node.values) - self.varying) & needed
        self.midway = [node for node in graph.nodes if node in behind or node in sums]
        return sums

    def _makers(self, node: Node) -> list[Node]:
        return [self.graph.maker[v] for v in node.operands if v in self.graph.maker]

    def _scattered_each(self) -> set[Node]:
        """The sums over microbatches that make gradients which ranks reduce for each microbatch (`zero` 2 and 3)."""
        each = {record["name"] for _, record in self.graph.arguments if record.get("scatter") == "each"}
        gradients = [v for v, r in self.graph.results if r.get("kind") == "gradient" and r["name"] in each]
        return self.graph.cone(gradients, within={*self.after, *self.late})

    def _sink(self, value: Value) -> None:
        """Move nodes behind the sum over microbatches that commute with it and have no other use."""
        node = self.graph.maker.get(value)
        if node is None or value in self._returned:
            return
        if self.commutes(node) and len(self.graph.users[value]) == 1:
            self.after.add(node)
            for operand in dict.fromkeys(node.operands):
                self._sink(operand)

    def commutes(self, node: Node) -> bool:
        """Whether the node commutes with a sum over microbatches."""
        if node not in self.varying or node.call is None:
            return False
        if node.name == "aten.add.Tensor":
            types = {str(v.type) for v in (*node.operands, *node.values)}
            varies = all(self.graph.maker.get(v) in self.varying for v in node.operands)
            return len(node.operands) == 2 and varies and len(types) == 1 and node.call.kwargs.get("alpha", 1) == 1
        return node.name in _SUMS and node.call.args[-1] == "sum" and MICROBATCH not in node.call.args[1]


def coupled_microbatches(node: Node, anchored: Sequence[Node]) -> StrettoError:
    """The error for a reduction over microbatches in the middle of the model."""
    origin = node.origin
    where = f' in "{origin.module_path}"' if origin.module_path else ""
    first = min(anchored, key=lambda n: str(n.origin))
    return StrettoError(
        "E0450",
        f"the microbatches of a pipeline are not independent{where}: rows of all of them are reduced together",
        span=Span(origin.file, origin.line) if origin.file else None,
        notes=((f'what is reduced depends on parameters, such as those of "{first.origin.module_path}"', None),),
        help="use a norm of each row by itself, or say in the pipeline: per microbatch",
    )


def _needs_coordinate(op: Operation) -> bool:
    """Whether an operation reads its coordinate on the microbatch axis."""
    call = read(op) if op.operation.name.startswith("comm.") else None
    if call is None or call.name not in ("comm.shard", "comm.offset", "comm.mask", "comm.random"):
        return False
    axes = [a for argument in call.args if isinstance(argument, list) for a in argument if isinstance(a, str)]
    return any(MICROBATCH in dim_axes.split(",") for dim_axes in axes)


def _coordinate_readers(module: Module) -> set[str]:
    """The functions that read the coordinate on the microbatch axis, themselves or in functions that they call."""
    functions = module.functions()
    readers = {name for name, f in functions.items() if any(_needs_coordinate(op) for op in operations(f))}
    while True:
        callers = {
            n for n, f in functions.items() if n not in readers and any(callee(op) in readers for op in operations(f))
        }
        if not callers:
            return readers
        readers |= callers


def without_microbatch_axis(type_: Type) -> Type:
    """The type without the microbatch axis in its placement, of the same local shape."""
    return to_mlir(from_mlir(type_).without_axis(MICROBATCH))


def with_microbatch_axis(tensor: TensorType, placement: AxisPlacement) -> TensorType:
    """The type with this placement on the microbatch axis, of the same local shape."""
    return tensor.with_axis(MICROBATCH, placement)


def is_over_microbatches(value: Value) -> bool:
    """Whether the value's type has a placement on the microbatch axis."""
    return is_tensor(value.type) and any(axis == MICROBATCH for axis, _ in from_mlir(value.type).placement)


def microbatch_dim(type_: Type) -> int | None:
    """The dim that the microbatch axis shards; None: none."""
    placement = dict(from_mlir(type_).placement).get(MICROBATCH)
    return placement.dim if isinstance(placement, Shard) else None


def all_microbatches(type_: Type, count: int) -> Type:
    """The type of all `count` microbatches of a value together."""
    dim, tensor = microbatch_dim(type_), from_mlir(without_microbatch_axis(type_))
    if dim is None:
        return to_mlir(tensor)
    return concatenated(to_mlir(tensor), dim, count)


def concatenated(type_: Type, dim: int, count: int) -> Type:
    """The type of `count` values of a type, concatenated along a dim."""
    tensor = from_mlir(type_)
    shape = tuple(n * count if index == dim else n for index, n in enumerate(tensor.shape))
    return to_mlir(replace(tensor, shape=shape))
