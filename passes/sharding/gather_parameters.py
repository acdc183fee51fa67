"""Gather stored parameters to their computed placement before each use.

Before (stored over dp)                          After
  %0 = call @layers_forward(%x, %w)                %g0 = comm.reshard %w {use = 0}      : dp = shard(0) -> whole
  ...                                              %0 = call @layers_forward(%x, %g0)
  %1 = call @layers_backward(%dy, %0, %w)          ...
                                                   %g1 = comm.reshard %w {use = 1}
                                                   %1 = call @layers_backward(%dy, %0, %g1)

A use is a call of a layer, or all operations of one module in one direction. A cast is none: its result is gathered, in
the dtype that is computed in. Casts inside of folded layers move before the calls for that (`layers/early_casts.py`).
Each use has a number, `use`. Without it `cse`
would merge the gathers of the forward and the backward, and keep the whole parameter in between. Gradients end in the
stored placement (`propagate-placements`), so their sums are reduce-scattered.

Where the argument's record says `gather = "once"` (levels 1 and 2 of `zero`, and `keep forward`), the first gather
serves all uses, and the whole parameter lives from the forward to the backward. Where it says `within`, one gather over
the other axes serves all uses; each use gathers over the axes of `within` alone.

Needs: level `aten`, placements on main's arguments (`place-arguments`).   Keeps: values.
Source: ZeRO, stage 3 (arXiv:1910.02054), PyTorch's FSDP (arXiv:2304.11277), and the secondary partition of ZeRO++
(arXiv:2306.10209, section 3.2), which `within` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...ir.bindings import Operation, Value, mlir
from ...ir.collectives import RESHARD
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import Level, Module, argument_records, callee, entry, operations, refresh_type
from ...ir.operations import Call, build, set_use
from ...ir.placement import Placement
from ...ir.types import from_mlir, to_mlir
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..layers.early_casts import cast_before_calls
from ..rewriting import users

_CAST = "aten.u_to_copy_default"
_Use = tuple[object, ...]


@dataclass(frozen=True)
class GatherParameters(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "gather-parameters"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})

    def run(self, module: Module) -> Report:
        main = module.functions()["main"]
        remarks, count = CountedRemarks(self.name), 0
        pairs = zip(entry(main).arguments, argument_records(main), strict=True)
        cast_before_calls(module, {argument for argument, record in pairs if record.get("stored")})
        for argument, record in zip(entry(main).arguments, argument_records(main), strict=True):
            stored = record.get("stored")
            if not stored:
                continue
            placement = from_mlir(argument.type).placement_on(module.mesh)
            computed = placement.without(stored)
            within = record.get("within") or stored
            across = [axis for axis in stored if axis not in within]
            for value in _with_casts(argument):
                once = record.get("gather") == "once"
                uses = _uses(main, value, once=once)
                source = value
                if across and uses:
                    source = _gathered(module, value, placement.without(across), uses[0][0], count)
                    count += 1
                for use in uses:
                    gathered = _gathered(module, source, computed, use[0], count)
                    for op in use:
                        op.operation.replace_uses_of_with(value, gathered)
                        called = callee(op)
                        if called is not None:
                            _retype_arguments(module.functions()[called], op, gathered)
                    remarks.applied("parameter gathered for a use", from_location(use[0].location))
                    count += 1
        return Report(count, remarks.remarks())


def _gathered(module: Module, value: Value, target: Placement, before: Operation, use: int) -> Value:
    """A value resharded to a placement, for a use of this number, before an operation."""
    type_ = to_mlir(from_mlir(value.type).placed(target, module.mesh))
    with context(), mlir.InsertionPoint(before):
        [gathered] = build(Call(RESHARD, (value,)), [type_], before.location)
    set_use(gathered.owner, use)
    return gathered


def _with_casts(parameter: Value) -> list[Value]:
    """A parameter and its casts: a rank casts what it holds, so that gathers move the dtype that is computed in."""
    values = [parameter]
    for value in values:
        values += [user.results[0] for user in users(value) if _is_cast(user)]
    return values


def _is_cast(op: Operation) -> bool:
    return bool(op.operation.name == _CAST)


def _retype_arguments(function: Operation, call: Operation, gathered: Value) -> None:
    """Give the arguments of a called function that receive a gathered parameter its type."""
    for argument, operand in zip(entry(function).arguments, call.operands, strict=True):
        if operand == gathered:
            argument.set_type(gathered.type)
    refresh_type(function)


def _uses(main: Operation, argument: Value, *, once: bool) -> Sequence[Sequence[Operation]]:
    """The operations that use a parameter, in order; each group shares a gather, and with `once` there is one."""
    reading = set(users(argument))
    groups: dict[_Use, list[Operation]] = {}
    for op in operations(main):
        if op in reading and op.operation.name != "func.return" and not _is_cast(op):
            origin = from_location(op.location)
            key: _Use = (op,) if callee(op) is not None else (origin.module_path, origin.backward)
            groups.setdefault(() if once else key, []).append(op)
    return list(groups.values())
