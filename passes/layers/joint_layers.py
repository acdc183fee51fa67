"""Join the forward and the backward of each distinct layer to one function while a pass runs, and part them after it.

Before                                            Between (main's calls are left as they are)
  func private @layers_forward(%x, %w) -> (%y, %k)  func private @layers_forward(%x, %w, %g) {
  func private @layers_backward(%g, %k, %w) -> %d     %y, %k = ..; %d = ..; return %y, %d
                                                    }
After
  as before, with the values that cross from forward to backward now

What a backward keeps of its forward is recognised by how the forward computes it. Passes say by `joins_layers` that
they want to see both: those of the phase before `fold-layers`, and `route-rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import (
    Module,
    build_call,
    build_function,
    callee,
    entry,
    finish_function,
    name_of,
    operations,
    refresh_type,
    terminator,
)
from ..rewriting import erase_unused


@dataclass(frozen=True)
class _Site:
    """The two calls of one layer."""

    forward: Operation
    backward: Operation


@dataclass
class _Joint:
    """A forward and a backward, joined to one function."""

    function: Operation
    """The forward's, which has the nodes of both."""
    backward_name: str
    sites: Sequence[_Site]
    backward_only: list[int]
    """For each argument beyond the forward's own: the operand of the backward's call that it stands for."""
    forward_results: list[int]
    """The forward's results that anything but its own backward uses: the first ones of the function."""
    backward_results: list[int]


@contextmanager
def joined(module: Module) -> Iterator[None]:
    """Inside, functions that are the forward and the backward of the same layers are one, at either level."""
    joints = [_join(pair, module) for pair in _pairs(module)]
    yield
    for joint in joints:
        _part(joint, module)


def paired(module: Module) -> dict[str, str]:
    """By the name of a forward that `joined` joins to its backward: that of the backward."""
    return {str(callee(sites[0].forward)): str(callee(sites[0].backward)) for sites in _pairs(module)}


def _pairs(module: Module) -> list[list[_Site]]:
    """The sites of each pair of functions whose calls are those of the same layers."""
    by_layer: dict[str, tuple[list[Operation], list[Operation]]] = {}
    calls: dict[str, int] = {}
    for op in operations(module.functions()["main"]):
        name = callee(op)
        if name is not None:
            calls[name] = calls.get(name, 0) + 1
            origin = from_location(op.location)
            by_layer.setdefault(origin.module_path, ([], []))[origin.backward].append(op)
    pairs: dict[tuple[str, str], list[_Site]] = {}
    for forwards, backwards in by_layer.values():
        if len(forwards) == len(backwards) == 1:
            site = _Site(forwards[0], backwards[0])
            pairs.setdefault((str(callee(site.forward)), str(callee(site.backward))), []).append(site)
    return [sites for names, sites in pairs.items() if all(calls[name] == len(sites) for name in names)]


def _join(sites: Sequence[_Site], module: Module) -> _Joint:
    functions = module.functions()
    forward, backward = functions[str(callee(sites[0].forward))], functions[str(callee(sites[0].backward))]
    end, backward_end = terminator(forward), terminator(backward)
    kept = _used(sites, [site.forward for site in sites])
    backward_kept = _used(sites, [site.backward for site in sites])
    backward_only = []
    sources = [_sources(site) for site in sites]
    for index, argument in enumerate(list(entry(backward).arguments)):
        value = _shared(sites, sources, index, forward)
        if value is None:
            value = entry(forward).add_argument(argument.type, mlir.Location.unknown(context()))
            backward_only.append(index)
        argument.replace_all_uses_with(value)
    results = [end.operands[i] for i in kept] + [backward_end.operands[i] for i in backward_kept]
    for op in list(operations(backward))[:-1]:
        op.operation.move_before(end.operation)
    end.operation.erase()
    finish_function(forward, results)
    joint = _Joint(forward, name_of(backward), sites, backward_only, kept, backward_kept)
    backward.operation.erase()
    return joint


def _used(sites: Sequence[_Site], calls: Sequence[Operation]) -> list[int]:
    """The results of one of the calls of each site that anything uses, but for the backward of the same site."""
    used = set()
    for site, call in zip(sites, calls, strict=True):
        for index, result in enumerate(call.results):
            if index not in used and any(use.owner.operation != site.backward.operation for use in result.uses):
                used.add(index)
    return sorted(used)


_Sources = Mapping[Value, set[tuple[bool, int]]]
"""By value: whether it is a result of a forward's call, and at which positions it is a result or an operand of it."""


def _sources(site: _Site) -> _Sources:
    found: dict[Value, set[tuple[bool, int]]] = {}
    for is_result, values in ((True, site.forward.results), (False, site.forward.operands)):
        for position, value in enumerate(values):
            found.setdefault(value, set()).add((is_result, position))
    return found


def _shared(sites: Sequence[_Site], sources: Sequence[_Sources], index: int, forward: Operation) -> Value | None:
    """The value of the forward that an operand of the backward's call is, at every site; None if it is none."""
    common: set[tuple[bool, int]] | None = None
    for site, source in zip(sites, sources, strict=True):
        found = source.get(site.backward.operands[index], set())
        common = found if common is None else common & found
        if not common:
            return None
    assert common is not None
    is_result, position = min(common)
    return terminator(forward).operands[position] if is_result else entry(forward).arguments[position]


def _part(joint: _Joint, module: Module) -> None:
    """Move the backward's operations to a function of their own, and call both where they were called."""
    erase_unused(joint.function)  # what only a dead operation of the backward reads must not cross
    block, end = entry(joint.function), terminator(joint.function)
    arguments = {argument: index for index, argument in enumerate(block.arguments)}
    own = len(arguments) - len(joint.backward_only)
    moved, made_behind = _backward_operations(joint.function, set(list(arguments)[own:]))
    results, count = list(end.operands), len(joint.forward_results)
    crossing = [v for op in moved for v in op.operands if v not in arguments and v not in made_behind]
    ahead = [v for v in (*results, *crossing) if v not in arguments and v not in made_behind]
    exports = list(dict.fromkeys(ahead))
    inputs = list(dict.fromkeys(v for op in moved for v in op.operands if v not in made_behind))
    returned = list(dict.fromkeys(v for v in results if v in made_behind))
    end.operation.erase()
    backward = build_function(module, joint.backward_name, [v.type for v in inputs])
    inside = dict(zip(inputs, entry(backward).arguments, strict=True))
    for op in moved:
        for position, operand in enumerate(op.operands):
            if operand in inside:
                op.operands[position] = inside[operand]
        entry(backward).append(op.operation)
    finish_function(backward, returned)
    finish_function(joint.function, exports)
    unused = [index for argument, index in arguments.items() if next(iter(argument.uses), None) is None]
    _rebuild_calls(joint, _Parted(arguments, inputs, exports, returned, results[:count], results[count:], unused))
    for index in reversed(unused):
        block.erase_argument(index)
    refresh_type(joint.function)


def _backward_operations(function: Operation, behind: set[Value]) -> tuple[list[Operation], set[Value]]:
    """The operations of the backward, or that use its values or arguments (`behind`); and their results."""
    moved, made = [], set[Value]()
    for op in list(operations(function))[:-1]:
        if from_location(op.location).backward or any(v in made or v in behind for v in op.operands):
            moved.append(op)
            made.update(op.results)
    return moved, made


@dataclass(frozen=True)
class _Parted:
    """What the two functions take and give, as values of the joint function."""

    arguments: dict[Value, int]
    """The joint function's, with their positions."""
    backward_inputs: list[Value]
    forward_exports: list[Value]
    backward_exports: list[Value]
    forward_results: list[Value]
    """What main uses of the forward, and of the backward."""
    backward_results: list[Value]
    unused: list[int]
    """The arguments that the forward does not take."""


def _rebuild_calls(joint: _Joint, parted: _Parted) -> None:
    """Replace the calls of every site."""
    forward_name = name_of(joint.function)
    left_out = set(parted.unused)
    types = [[v.type for v in values] for values in (parted.forward_exports, parted.backward_exports)]
    for site in joint.sites:
        own = list(site.forward.operands)
        operands = [*own, *[site.backward.operands[i] for i in joint.backward_only]]
        values = {argument: operands[index] for argument, index in parted.arguments.items()}
        with context(), mlir.InsertionPoint(site.forward):
            taken = [v for i, v in enumerate(own) if i not in left_out]
            made = build_call(forward_name, taken, types[0], site.forward.location)
        values.update(zip(parted.forward_exports, made, strict=True))
        with context(), mlir.InsertionPoint(site.backward):
            taken = [values[v] for v in parted.backward_inputs]
            made = build_call(joint.backward_name, taken, types[1], site.backward.location)
        values.update(zip(parted.backward_exports, made, strict=True))
        for call, kept, new in (
            (site.backward, joint.backward_results, parted.backward_results),
            (site.forward, joint.forward_results, parted.forward_results),
        ):
            for index, value in zip(kept, new, strict=True):
                call.results[index].replace_all_uses_with(values[value])
            call.operation.erase()
