"""Verify modules beyond MLIR's own rules: placements, constants, shapes of collectives, futures.

Of every type: its axes are on the mesh, and shard dims that it has. Of every operation: its constants are present and
of the schema's type. At level `comm`, of every other operation: axes that shard one dim nest in one order in all its
values; of collectives: operand and result shapes fit the size of the group. Each future is used exactly once: by a
wait, or by a call or a return, which pass it on to another function. So it is waited on exactly once along each path.
Entry functions take and give no futures. `pipeline_verifier.py` checks pipelined modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, takewhile

import torch

from ..diagnostics import Span, StrettoError
from .bindings import Attribute, Operation, Type, Value, mlir
from .collectives import EXPERT_LINEAR, EXPERT_PRODUCTS, SEND, STARTS, TRANSFERS, WAIT, Collective, collective
from .dialects.schemas import Argument, OpDef, by_mlir_name
from .lanes import LANE, lane_problem
from .locations import from_location
from .module import Level, Module, callee, entry, operations, terminator
from .operations import Call, flatten, read, results_of, tuple_types
from .pipeline_verifier import pipeline_problems
from .pipelined_module import entry_names
from .placement import Mesh, Shard, axes_size, chunk_size
from .types import TensorType, from_mlir, is_future, is_tensor

_DUMP = "see current operation: "
"""The marker before an operation's text in MLIR's errors, which is left out."""
_PASSING_ON = ("func.call", "func.return")
"""What hands a future to another function."""
_LAYOUT = ("operandSegmentSizes",)
"""The attribute that says which optional operands an operation has."""
_PLAIN = {
    "int": (mlir.IntegerAttr, mlir.TypeAttr),
    "float": (mlir.FloatAttr, mlir.IntegerAttr),
    "bool": (mlir.BoolAttr,),
    "str": (mlir.StringAttr,),
}
"""By the schema's type of a constant, its attribute classes; in schemas, a dtype is an int."""


@dataclass(frozen=True)
class Problem:
    """One violation, and the operation (or the function, for a type of its arguments) where it is."""

    message: str
    op: Operation


@dataclass(frozen=True)
class _Kind:
    """What the checks of an operation look at: equal operations of many layers are checked once."""

    name: str
    types: tuple[Type, ...]
    operands: int
    constants: tuple[Attribute | None, ...]


def _kind(op: Operation, definition: OpDef) -> _Kind:
    operands = [value.type for value in op.operands]
    attributes = op.attributes
    names = [*(argument.name for argument in definition.constants), *_LAYOUT]
    constants = tuple(attributes.get(name) for name in names)
    return _Kind(definition.mlir_name, (*operands, *(v.type for v in op.results)), len(operands), constants)


class Verified:
    """Kinds of operations that had no problem when a module was verified: later versions of it are asked less."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[Mesh, Level], set[_Kind]] = {}

    def kinds(self, mesh: Mesh, level: Level) -> set[_Kind]:
        """The kinds that are sound on a mesh, at a level. The caller adds to it."""
        return self._kinds.setdefault((mesh, level), set())


def verify(module: Module, verified: Verified | None = None) -> None:
    """Raise StrettoError E0505 for the first violation, E0506 where MLIR's own verification fails.

    `verified` is what earlier calls have learnt of the module.
    """
    try:
        module.verify()
    except mlir.MLIRError as error:
        lines = takewhile(lambda line: _DUMP not in line, str(error).splitlines())
        raise StrettoError("E0506", "the module is not valid: " + "\n".join(lines)) from None
    for problem in problems(module, verified):
        raise _error(problem)


def problems(module: Module, verified: Verified | None = None) -> Iterator[Problem]:
    """Every violation of Stretto's own rules."""
    checker = _Checker(module.mesh, module.level, verified or Verified())
    for function in module.functions().values():
        for index, argument in enumerate(entry(function).arguments):
            if argument.type not in checker.sound:
                yield from checker.type_problems(argument, function)
                if is_future(argument.type):
                    yield from _future_problems(argument, f"argument {index}, a future,", function)
        for op in operations(function):
            yield from checker.op_problems(op)
    yield from _entry_problems(module)
    yield from (Problem(message, op) for message, op in pipeline_problems(module))


def _error(problem: Problem) -> StrettoError:
    origin = from_location(problem.op.location)
    span = Span(origin.file, origin.line) if origin.file else None
    where = f" in {origin.module_path}" if origin.module_path else ""
    return StrettoError("E0505", f'"{problem.op.operation.name}"{where}: {problem.message}', span=span)


class _Checker:
    """The checks of one module; types of tensors are checked once each, and those of a function's results once."""

    def __init__(self, mesh: Mesh, level: Level, verified: Verified) -> None:
        self.mesh = mesh
        self.level = level
        self.sound: set[Type] = set()
        """Types of tensors without a problem; a future has to be looked at itself."""
        self._sound_calls: set[str] = set()
        """The functions whose results have sound types. MLIR has verified that each call has the same."""
        self._sound_kinds = verified.kinds(mesh, level)

    def op_problems(self, op: Operation) -> Iterator[Problem]:
        name = callee(op)
        if name is None or name not in self._sound_calls:
            for result in op.results:
                if result.type not in self.sound:
                    yield from self.type_problems(result, op)
                    if is_future(result.type):
                        yield from _future_problems(result, "its future", op)
            if name is not None and all(result.type in self.sound for result in op.results):
                self._sound_calls.add(name)
        if LANE in op.attributes:
            yield from (Problem(message, op) for message in (lane_problem(op),) if message)
        definition = by_mlir_name().get(op.operation.name)
        if definition is None:
            return
        kind = _kind(op, definition)
        if kind not in self._sound_kinds:
            found = list(self._own_problems(op, definition))
            yield from found
            if not found and not any(isinstance(type_, mlir.TupleType) for type_ in kind.types):
                self._sound_kinds.add(kind)

    def _own_problems(self, op: Operation, definition: OpDef) -> Iterator[Problem]:
        """Violations of an operation of Stretto's dialects. Without lists of tensors, those of its `_Kind`."""
        if self.level is Level.COMM and not definition.name.startswith("comm."):
            yield from self._nest_problems(op)
        attributes = op.attributes
        broken = [message for a in definition.constants for message in _constant_problem(a, attributes)]
        yield from (Problem(message, op) for message in broken)
        if definition.name.startswith("comm.") and not broken:
            call = read(op)
            if call is not None:
                yield from self.comm_problems(op, call)

    def type_problems(self, value: Value, op: Operation) -> Iterator[Problem]:
        mlir_type = value.type
        if not (is_tensor(mlir_type) or is_future(mlir_type)):
            return
        type_ = from_mlir(mlir_type)
        known = {axis for axis, _ in self.mesh}
        for axis, placement in type_.placement:
            if axis not in known:
                yield Problem(f'the mesh has no axis "{axis}", which type {mlir_type} names', op)
            elif isinstance(placement, Shard) and not 0 <= placement.dim < len(type_.shape):
                yield Problem(f"type {mlir_type} shards dim {placement.dim}, which it does not have", op)
        yield from (Problem(f"type {mlir_type} {message}", op) for message in self._block_problems(type_))
        if type_.extents is not None and len(type_.extents) != len(type_.shape):
            yield Problem(f"type {mlir_type} has {len(type_.shape)} dims and {len(type_.extents)} extents", op)
        if not is_future(mlir_type):
            self.sound.add(mlir_type)

    def _block_problems(self, type_: TensorType) -> Iterator[str]:
        """Violations of blocks: a dim that is not cut, or ranks that do not divide every block."""
        for dim, blocks in type_.blocks:
            axes = type_.placement_on(self.mesh).dims[dim] if dim < len(type_.shape) else ()
            ranks = axes_size(self.mesh, tuple(axis for axis in axes if axis in dict(self.mesh)))
            extent = type_.shape[dim] * (ranks if self.level is Level.COMM else 1) if axes else 0
            if not axes or sum(map(abs, blocks)) != extent or any(block % ranks for block in blocks):
                yield f"has blocks {list(blocks)} in dim {dim}, which {ranks} ranks do not cut evenly"

    def _nest_problems(self, op: Operation) -> Iterator[Problem]:
        """Two axes that nest in different orders in values of one operation: its ranks' parts do not match."""
        tensors = [from_mlir(v.type) for v in (*op.operands, *op.results) if is_tensor(v.type)]
        if not any(tensor.nests for tensor in tensors):
            return
        outside: set[tuple[str, str]] = set()
        for tensor in tensors:
            for axes in tensor.placement_on(self.mesh).dims:
                for pair in combinations(axes, 2):
                    if pair[::-1] in outside:
                        yield Problem(f'its values nest "{pair[0]}" and "{pair[1]}" in different orders', op)
                        return
                    outside.add(pair)

    def comm_problems(self, op: Operation, call: Call) -> Iterator[Problem]:
        if call.name == "comm.reshard":
            if self.level is Level.COMM:
                yield Problem("at level comm, a change of placement must be a collective", op)
            return
        if call.name == WAIT and not is_future(call.args[0].type):
            yield Problem(f"it waits on {call.args[0].type}, which is not a future", op)
            return
        if call.name == "comm.random":
            yield from (Problem(message, op) for message in self._random_problems(op, call))
            return
        if call.name in TRANSFERS:
            yield from (Problem(message, op) for message in self._transfer_problems(op, call))
            return
        known = collective(call.name)
        axes = next((a for a in call.args[1 if known else 0 :] if isinstance(a, list)), [])
        unknown = [axis for axis in axes if axis not in dict(self.mesh)]
        if unknown:
            yield Problem(f'the mesh has no axis "{unknown[0]}"', op)
            return
        if call.name in STARTS and not flatten(results_of(op)):
            yield Problem("its futures must be waited on exactly once each, but nothing takes them", op)
        if known is not None and known.coalesces:
            yield from (Problem(message, op) for message in self._bucket_problems(op, call, known, axes))
            return
        if call.name in EXPERT_PRODUCTS:
            yield from (Problem(message, op) for message in _expert_problems(op, call))
            return
        try:
            wanted = self._wanted_shape(call, axes)
        except IndexError:
            yield Problem(f"a dim of {list(call.args[2:])} is none of its operand {call.args[0].type}", op)
            return
        found = from_mlir(op.results[0].type).shape
        if wanted is not None and wanted != found:
            yield Problem(f"its result must have shape {list(wanted)}, not {list(found)}", op)
        if known is not None and known.counts:
            yield from (Problem(message, op) for message in self._count_problems(call, known, axes))

    def _count_problems(self, call: Call, known: Collective, axes: list[str]) -> Iterator[str]:
        """Violations of an exchange of rows: counts that are no number for each rank, or a bound below 0."""
        given = dict(zip(known.arguments, call.args[1:], strict=True))
        if given[known.bound] < 0:
            yield f"its bound is {given[known.bound]}"
        wanted = [axes_size(self.mesh, tuple(axes))]
        for name in known.counts:
            type_ = from_mlir(given[name].type)
            if (type_.dtype, [*type_.shape]) != (torch.int64, wanted):
                found = f"{type_.dtype} {list(type_.shape)}"
                yield f"its {name} must be {torch.int64} {wanted}, one for each rank of the group, not {found}"

    def _bucket_problems(self, op: Operation, call: Call, known: Collective, axes: list[str]) -> Iterator[str]:
        """Violations of a collective of several tensors."""
        operands = [from_mlir(value.type) for value in call.args[0]]
        dtypes = dict.fromkeys(operand.dtype for operand in operands)
        if len(dtypes) != 1:
            yield f"a bucket takes tensors of one dtype, not of {', '.join(map(str, dtypes)) or 'none'}"
            return
        for constant in (each for each in call.args[2:] if isinstance(each, list)):
            if len(constant) != len(operands):
                yield f"it takes {len(operands)} tensors, but {len(constant)} dims"
                return
        results = [from_mlir(type_) for type_ in tuple_types(op.results[0].type)]
        shapes = [operand.shape for operand in operands]
        try:
            wanted = list(known.result_shapes(shapes, call.args[1:], axes_size(self.mesh, tuple(axes))))
        except IndexError:
            yield f"a dim of {list(call.args[2])} is none of its operand"
            return
        if len(results) != len(operands):
            yield f"it takes {len(operands)} tensors, but gives {len(results)}"
            return
        for index, (shape, result, operand) in enumerate(zip(wanted, results, operands, strict=True)):
            if (shape, operand.dtype) != (result.shape, result.dtype):
                found = f"{result.dtype} {list(result.shape)}"
                expected = "a shape that the ranks divide" if shape is None else f"{operand.dtype} {list(shape)}"
                yield f"its result {index} must be {expected}, not {found}"

    def _transfer_problems(self, op: Operation, call: Call) -> Iterator[str]:
        """Violations of a send or a receive."""
        axis, peer, *rest = call.args[1:3] if call.name == SEND else call.args[:4]
        sizes = dict(self.mesh)
        if axis not in sizes:
            yield f'the mesh has no axis "{axis}"'
        elif not 0 <= peer < sizes[axis]:
            yield f'coordinate {peer} is out of range: "{axis}" has {sizes[axis]}'
        if rest:
            found = from_mlir(op.results[0].type)
            if (tuple(rest[0]), rest[1]) != (found.shape, found.dtype):
                yield f"it takes {rest[1]} {rest[0]}, but its result is {found.dtype} {list(found.shape)}"

    def _random_problems(self, op: Operation, call: Call) -> Iterator[str]:
        """Violations of a comm.random: a rank's chunks of a random tensor."""
        match call.args[2:5]:
            case [[*size], [*names], [*chunks]] if all(isinstance(n, int) for n in (*size, *chunks)):
                pass
            case _:
                yield "its constants must be lists of extents, of axes and of chunks"
                return
        if not len(size) == len(names) == len(chunks):
            yield f"size {size}, axes {names} and chunks {chunks} differ in length"
            return
        for extent, axes, chunk in zip(size, names, chunks, strict=True):
            cutting = tuple(axes.split(",")) if axes else ()
            unknown = [axis for axis in cutting if axis not in dict(self.mesh)]
            if unknown:
                yield f'the mesh has no axis "{unknown[0]}"'
                return
            wanted = chunk_size(extent, axes_size(self.mesh, cutting))
            if chunk != wanted:
                yield f"a rank's chunk of {extent} elements over {list(cutting)} is {wanted}, not {chunk}"
        found = from_mlir(op.results[0].type).shape
        if tuple(chunks) != found:
            yield f"its result must have shape {chunks}, not {list(found)}"

    def _wanted_shape(self, call: Call, axes: list[str]) -> tuple[int, ...] | None:
        """The shape of the result of a comm operation; None where it has no operand, or the dims do not fit it."""
        if not call.args or not isinstance(call.args[0], mlir.Value):
            return ()
        shape = from_mlir(call.args[0].type).shape
        known = collective(call.name)
        if known is not None:
            return known.result_shape(shape, call.args[1:], axes_size(self.mesh, tuple(axes)))
        match call.name, call.args[2:]:
            case ("comm.shard", [int(dim), int(chunk)]):
                return _with_extent(shape, dim, chunk)
        return shape


def _expert_problems(op: Operation, call: Call) -> Iterator[str]:
    """Violations of a product by expert: an expert for each row, and shapes that fit."""
    x, other, experts, _, *numbers = call.args
    rows, partner, chosen, found = (from_mlir(v.type).shape for v in (x, other, experts, op.results[0]))
    if min(numbers) < 0:
        yield f"its bound is {min(numbers)}"
    if rows[:-1] != chosen:
        yield f"it has rows {list(rows[:-1])}, but experts of rows {list(chosen)}"
        return
    if call.name == EXPERT_LINEAR:
        fits = len(partner) == 3 and rows[-1] == partner[1]
        wanted = (*rows[:-1], partner[-1])
    else:
        fits, wanted = rows[:-1] == partner[:-1], (numbers[0], rows[-1], partner[-1])
    if not fits or found != wanted:
        yield f"{list(rows)} and {list(partner)} do not give {list(found)}"


def _with_extent(shape: tuple[int, ...], dim: int, extent: int) -> tuple[int, ...]:
    extents = list(shape)
    extents[dim] = extent
    return tuple(extents)


def _future_problems(value: Value, what: str, op: Operation) -> Iterator[Problem]:
    """Violations of a future, the result of an operation or an argument of a function."""
    users = [use.owner for use in value.uses]
    if len(users) != 1:
        yield Problem(f"{what} must be waited on exactly once, not {len(users)} times", op)
    for user in users:
        name = user.operation.name
        if name != WAIT and name not in _PASSING_ON:
            yield Problem(f'{what} goes to "{name}", which takes tensors: wait for it before', op)


def _entry_problems(module: Module) -> Iterator[Problem]:
    """Futures that an entry function takes or gives: nobody outside can start or wait for them."""
    for name in entry_names(module):
        function = module.functions().get(name)
        if function is None or not len(function.regions[0].blocks):
            continue
        for side, values in (("takes", entry(function).arguments), ("gives", terminator(function).operands)):
            if any(is_future(value.type) for value in values):
                yield Problem(f'the entry function "{name}" {side} a future: it must be waited on inside', function)


def _constant_problem(argument: Argument, attributes: Mapping[str, Attribute]) -> Iterator[str]:
    """The violation of one constant: missing, or of another type than the schema's."""
    if argument.name not in attributes:
        if argument.required:
            yield f'the constant "{argument.name}" of type {argument.type} is missing'
        return
    wanted = _PLAIN.get(argument.type)
    if wanted is not None and not isinstance(attributes[argument.name], wanted):
        yield f'the constant "{argument.name}" must be of type {argument.type}, not {attributes[argument.name]}'
