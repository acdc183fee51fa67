"""Turn repeated layers into one function called many times, forward and backward, so that what follows costs once.

Before                                      After
  func @main(..) {                            func private @layers_forward(%x, %w) { %0 = aten.mm ..; return %0, .. }
    %0 = aten.mm %x, %w0      layers.0        func @main(..) {
    %1 = aten.mm %0, %w1      layers.1          %0:2 = call @layers_forward(%x, %w0)
    ..                                          %1:2 = call @layers_forward(%0#0, %w1)

The operations of one instance are those whose module path holds its number in a numbered container ("layers.3.mlp"),
forward and backward apart. Instances are the same when their operations, constants, types and dataflow are, value by
value; what later operations need of any of them is a result of the function. Different instances stay as they are.
An instance that could not run in one piece, because what it needs depends on what it gives, is left alone.

Needs: level `aten`.   Keeps: values.   Source: the repeated-subgraph folding of autoparallel.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import Origin, from_location, to_location
from ...ir.module import (
    Level,
    Module,
    argument_records,
    build_call,
    build_function,
    entry,
    finish_function,
    operations,
    result_records,
    terminator,
)
from ...ir.operations import Call, build, flatten, is_packing, read, regroup, results_of
from ..base import Pass, Remark, RemarkKind, Report

_NUMBERED = re.compile(r"^(?P<container>(?:[^.\d][^.]*\.)*[^.\d][^.]*)\.(?P<index>\d+)(?=\.|$)")


_COMPARED = ("constants", "operands", "results")
"""What a line of a signature has behind the operation's name."""


@dataclass(frozen=True)
class _Where:
    """Which instance of which container an operation belongs to."""

    container: str
    index: int
    backward: bool

    @property
    def path(self) -> str:
        """The module path of the layer."""
        return f"{self.container}.{self.index}"


@dataclass
class _Op:
    """One operation, read once."""

    op: Operation
    call: Call
    results: list[Any]
    operands: list[Value]
    origin: Origin


@dataclass
class _Instance:
    """The operations of one layer in one direction."""

    where: _Where
    ops: list[_Op] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    """Values from outside, in the order of their first use."""
    values: list[Value] = field(default_factory=list)
    """Values made inside, in order."""

    def signature(self) -> tuple[Any, ...]:
        """What two instances share when one function can stand for both; fills `inputs` and `values`."""
        self.inputs, self.values = [], []
        numbers: dict[Value, int] = {}
        lines = []
        for each in self.ops:
            given = []
            for value in each.operands:
                if value not in numbers:
                    numbers[value] = -1 - len(self.inputs)
                    self.inputs.append(value)
                given.append(numbers[value])
            made = flatten(each.results)
            for value in made:
                numbers[value] = len(self.values)
                self.values.append(value)
            lines.append((each.call.name, _constants(each.call), tuple(given), tuple(str(v.type) for v in made)))
        return (*lines, tuple(str(v.type) for v in self.inputs))


@dataclass(frozen=True)
class FoldLayers(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "fold-layers"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})

    def run(self, module: Module) -> Report:
        main = module.functions()["main"]
        ops = [_read(op) for op in list(operations(main))[:-1] if not is_packing(op)]
        groups, alone = _same_instances(ops)
        order, refused = _order(ops, groups)
        if refused:
            groups = [[i for i in g if i not in refused] for g in groups]
            groups = [g for g in groups if len(g) > 1]
            order, _ = _order(ops, groups)
        declined = (*_refusals(refused), *_unlike(alone, groups))
        if not groups:
            return Report(remarks=declined)
        made = module.successor()
        _Rebuild(main, made, groups).run(order)
        module.become(made)
        return Report(sum(len(g) for g in groups), (*_folded(groups), *declined))


def _read(op: Operation) -> _Op:
    call = read(op)
    if call is None:
        raise RuntimeError(f"fold-layers met an operation it does not know: {op}")
    return _Op(op, call, results_of(op), call.values(), from_location(op.location))


def _where(origin: Origin) -> _Where | None:
    match = _NUMBERED.match(origin.module_path)
    return _Where(match["container"], int(match["index"]), origin.backward) if match else None


def _same_instances(ops: Sequence[_Op]) -> tuple[list[list[_Instance]], list[_Instance]]:
    """Instances with equal signatures, in order of first appearance, and those that are like no other."""
    instances: dict[_Where, _Instance] = {}
    for each in ops:
        where = _where(each.origin)
        if where is not None:
            instances.setdefault(where, _Instance(where)).ops.append(each)
    groups: dict[tuple[Any, ...], list[_Instance]] = {}
    for where, instance in instances.items():
        groups.setdefault((where.container, where.backward, instance.signature()), []).append(instance)
    alone = [group[0] for group in groups.values() if len(group) == 1]
    return [group for group in groups.values() if len(group) > 1], alone


_Node = _Op | _Instance


def _order(ops: Sequence[_Op], groups: Sequence[Sequence[_Instance]]) -> tuple[list[_Node], list[_Instance]]:
    """Operations and folded instances in an order that respects dataflow, as near the old one as can be.

    The second list holds the instances that stand on a cycle, which cannot run in one piece.
    """
    owner: dict[int, _Instance] = {id(each): i for group in groups for i in group for each in i.ops}
    nodes: dict[int, _Node] = {}
    last: dict[int, int] = {}
    maker: dict[Value, int] = {}
    for position, each in enumerate(ops):
        node = owner.get(id(each), each)
        nodes[id(node)] = node
        last[id(node)] = position
        maker.update(dict.fromkeys(flatten(each.results), id(node)))
    before: dict[int, set[int]] = {key: set() for key in nodes}
    for each in ops:
        key = id(owner.get(id(each), each))
        before[key].update(maker[v] for v in each.operands if v in maker and maker[v] != key)
    after: dict[int, list[int]] = {key: [] for key in nodes}
    for key, needs in before.items():
        for need in needs:
            after[need].append(key)
    missing = {key: len(needs) for key, needs in before.items()}
    ready = [(last[key], key) for key, n in missing.items() if n == 0]
    heapq.heapify(ready)
    found: list[_Node] = []
    while ready:
        _, key = heapq.heappop(ready)
        found.append(nodes[key])
        for user in after[key]:
            missing[user] -= 1
            if missing[user] == 0:
                heapq.heappush(ready, (last[user], user))
    stuck = [nodes[key] for key, n in missing.items() if n > 0]
    return found, [node for node in stuck if isinstance(node, _Instance)]


class _Rebuild:
    """Main with calls in place of the instances, and the functions they call."""

    def __init__(self, main: Operation, made: Module, groups: Sequence[Sequence[_Instance]]) -> None:
        self.main = main
        self.made = made
        self.values: dict[Value, Value] = {}
        returned = set(terminator(main).operands)
        self.kept: dict[int, list[int]] = {}
        for group in groups:
            self.kept.update(dict.fromkeys(map(id, group), _exported(group, returned)))
        self.names = _names(groups)
        for group in groups:
            self._function(group[0])

    def run(self, order: Sequence[_Node]) -> None:
        """Build main."""
        types = [a.type for a in entry(self.main).arguments]
        new = build_function(self.made, "main", types, records=argument_records(self.main))
        self.values = dict(zip(entry(self.main).arguments, entry(new).arguments, strict=True))
        with context(), mlir.InsertionPoint(entry(new)):
            for node in order:
                if isinstance(node, _Instance):
                    self._call(node)
                else:
                    _copy(node, self.values, node.op.location)
        results = [self.values[v] for v in terminator(self.main).operands]
        finish_function(new, results, result_records(self.main))

    def _function(self, instance: _Instance) -> None:
        new = build_function(self.made, self.names[id(instance)], [v.type for v in instance.inputs])
        values = dict(zip(instance.inputs, entry(new).arguments, strict=True))
        with context(), mlir.InsertionPoint(entry(new)):
            for each in instance.ops:
                _copy(each, values, to_location(_unnumbered(each.origin)))
        finish_function(new, [values[instance.values[k]] for k in self.kept[id(instance)]])

    def _call(self, instance: _Instance) -> None:
        kept = [instance.values[k] for k in self.kept[id(instance)]]
        origin = Origin(f"{instance.where.container}.{instance.where.index}", "", 0, instance.where.backward)
        operands = [self.values[v] for v in instance.inputs]
        types = [v.type for v in kept]
        results = build_call(self.names[id(instance)], operands, types, to_location(origin))
        self.values.update(zip(kept, results, strict=True))


def _copy(each: _Op, values: dict[Value, Value], loc: Any) -> None:
    made = flatten(each.results)
    types = regroup(each.results, [v.type for v in made])
    results = build(each.call.replace_values([values[v] for v in each.operands]), types, loc)
    values.update(zip(made, flatten(results), strict=True))


def _exported(group: Sequence[_Instance], returned: set[Value]) -> list[int]:
    """Which of the values made inside are used outside by any instance of the group, by number."""
    kept: set[int] = set()
    for instance in group:
        inside = {each.op.operation for each in instance.ops}
        for number, value in enumerate(instance.values):
            if number not in kept and (value in returned or not _used_only(value, inside)):
                kept.add(number)
    return sorted(kept)


def _used_only(value: Value, inside: set[Operation]) -> bool:
    """Whether all users of a value, through the packing of lists, are among `inside`."""
    for use in value.uses:
        user = use.owner
        if is_packing(user):
            if not all(_used_only(r, inside) for r in user.results):
                return False
        elif user.operation not in inside:
            return False
    return True


def _constants(call: Call) -> str:
    """The arguments of a call that are no values, as text."""

    def constant(argument: Any) -> Any:
        if isinstance(argument, mlir.Value):
            return "%"
        if isinstance(argument, (list, tuple)):
            return [constant(a) for a in argument]
        return argument

    return repr(([constant(a) for a in call.args], {k: constant(v) for k, v in sorted(call.kwargs.items())}))


def _names(groups: Sequence[Sequence[_Instance]]) -> dict[int, str]:
    """A name for each group's function, from its container and direction, told apart by numbers."""
    counts: dict[str, int] = {}
    names: dict[int, str] = {}
    for group in groups:
        where = group[0].where
        base = f"{re.sub('[^A-Za-z0-9_]', '_', where.container)}_{'backward' if where.backward else 'forward'}"
        number = counts.get(base, 0)
        counts[base] = number + 1
        names.update(dict.fromkeys(map(id, group), f"{base}_{number}" if number else base))
    return names


def _unnumbered(origin: Origin) -> Origin:
    """The place of an operation that stands for every instance: "layers.*.mlp"."""
    path = _NUMBERED.sub(lambda m: f"{m['container']}.*", origin.module_path)
    return Origin(path, origin.file, origin.line, origin.backward)


def _folded(groups: Sequence[Sequence[_Instance]]) -> list[Remark]:
    return [
        Remark(
            "fold-layers",
            RemarkKind.APPLIED,
            f"{len(group)} equal {'backward' if group[0].where.backward else 'forward'} layers of "
            f'"{group[0].where.container}" became one function of {len(group[0].ops)} operations',
            Origin(group[0].where.container, *_first_place(group[0]), group[0].where.backward),
        )
        for group in groups
    ]


def _first_place(instance: _Instance) -> tuple[str, int]:
    """File and line of the first operation that has them."""
    return next(((e.origin.file, e.origin.line) for e in instance.ops if e.origin.file), ("", 0))


def _refusals(refused: Sequence[_Instance]) -> list[Remark]:
    return [
        Remark(
            "fold-layers",
            RemarkKind.MISSED,
            f'layer "{i.where.path}" needs a value that depends on what it gives',
            Origin(i.where.path, backward=i.where.backward),
        )
        for i in refused
    ]


def _unlike(alone: Sequence[_Instance], groups: Sequence[Sequence[_Instance]]) -> list[Remark]:
    """One remark for the layers of a container and direction that are like no other: how many, and how one differs."""
    by_container: dict[tuple[str, bool], list[_Instance]] = {}
    for instance in alone:
        by_container.setdefault((instance.where.container, instance.where.backward), []).append(instance)
    found = []
    for (container, backward), members in by_container.items():
        others = [g[0] for g in groups if (g[0].where.container, g[0].where.backward) == (container, backward)]
        others += members
        if len(others) > 1:
            other = next(each for each in others if each is not members[0])
            difference, origin = _difference(members[0], other)
            direction = "backward" if backward else "forward"
            numbers = ", ".join(str(each.where.index) for each in members)
            message = f'{direction} layers {numbers} of "{container}" are like no other: {difference}'
            found.append(Remark("fold-layers", RemarkKind.MISSED, message, origin))
    return found


def _difference(one: _Instance, other: _Instance) -> tuple[str, Origin]:
    """The first difference between two instances, and where it is."""
    ours, theirs = one.signature(), other.signature()
    for at, (our, their) in enumerate(zip(ours[:-1], theirs[:-1], strict=False)):
        if our != their:
            each = one.ops[at]
            if our[0] != their[0]:
                return f'"{our[0]}" stands where "{other.where.path}" has "{their[0]}"', each.origin
            what = next(w for w, a, b in zip(_COMPARED, our[1:], their[1:], strict=True) if a != b)
            return f'"{our[0]}" has other {what} than in "{other.where.path}"', each.origin
    if len(ours) != len(theirs):
        count = f"{len(ours) - 1} operations, where {other.where.path} has {len(theirs) - 1}"
        return f"{one.where.path} has {count}", one.ops[-1].origin
    our, their = next((a, b) for a, b in zip(ours[-1], theirs[-1], strict=True) if a != b)
    return f'it takes {our} where "{other.where.path}" takes {their}', one.ops[0].origin
