"""Note at each attention whose tokens an axis cuts by which method its queries meet the keys of all tokens.

Before (tokens over cp=4, keys of two heads)    After, with `attention over cp { method all_to_all }`
  %o, %l = nn.attention %q, %k, %v                %k4 = aten.reshape (aten.expand %k)     each head twice; so %v4
                                                  %o, %l = nn.attention %q, %k4, %v4 {over = [["cp", "all_to_all"]]}

An attention is found by its operation, and its axes by the inputs: those that shard a dim to which operations tie the
tokens of its queries (`tied_dims.py`). `propagate-placements` then chooses among the strategies of the method.

For `all_to_all`, ranks share heads. Where heads of keys are fewer than ranks, each is repeated as often as makes them
divide, if there is more than one; its gradient is the sum of those of its copies. Heads of queries that ranks cannot
share are refused (E0406).

Tokens that a ring cannot divide are refused (E0406) too. With `layout zigzag` inputs are brought to it at the start of
main (`zigzag_inputs.py`), and the op's method is "zigzag".

Source: DeepSpeed-Ulysses (arXiv:2309.14509) for all_to_all, Ring Attention (arXiv:2310.01889) for ring, the Llama 3
report (arXiv:2407.21783), section 3.3.2, for gather.
Needs: level `aten`, placements on main's arguments (`place-arguments`).   Keeps: values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm, prod
from typing import ClassVar

from ...dsl.attention import Attention, Layout, Method
from ...dsl.plan import Plan
from ...ir.attention_methods import ATTENTION, ZIGZAG, set_methods
from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.module import Level, Module, Record, argument_records, entry
from ...ir.operations import Call, build
from ...ir.placement import Mesh, Placement
from ...ir.types import TensorType, from_mlir
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..plan_effects import key_of
from ..rewriting import Emitter, Site, site_weights, sites
from .attention_methods import HEADS, TOKENS, refused
from .tied_dims import TiedDims
from .zigzag_inputs import cut_zigzag

_GROUPS = 2
"""The dim that the copies of a head get."""


@dataclass(frozen=True)
class ChooseAttention(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "choose-attention"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    plan: Plan
    """The plan; its `attention` statements are used."""

    def run(self, module: Module) -> Report:
        if not self.plan.attention:
            return Report()
        remarks, weights, cut = CountedRemarks(self.name), site_weights(module), _CutDims(module)
        choices = [_choice(site, cut, self.plan) for site in sites(module, ATTENTION)]
        for site, choice in zip(sites(module, ATTENTION), choices, strict=True):
            op = site.op if choice.copies == 1 else _with_copies(site, choice.copies)
            set_methods(op, choice.methods)
            for axis, method in choice.methods.items():
                remarks.applied(f"{method} over {axis}", site.origin, weights[site.function])
        obeyed = {axis for choice in choices for axis in choice.methods}
        zigzag = {axis for choice in choices for axis, method in choice.methods.items() if method == ZIGZAG}
        if zigzag:
            cut_zigzag(module, zigzag)
        return Report(len(obeyed), remarks.remarks(), self._effects(module.mesh, obeyed))

    def _effects(self, mesh: Mesh, obeyed: set[str]) -> dict[str, str]:
        """By key of an `attention` statement: why it has no effect; empty if it has one."""
        sizes = dict(mesh)
        return {
            key_of(index): "" if obeyed.intersection(statement.axes) else "it cuts the tokens of no attention"
            for index, statement in enumerate(self.plan.statements)
            if isinstance(statement, Attention) and any(sizes[axis] > 1 for axis in statement.axes)
        }


class _CutDims:
    """The axes that shard the dims of values, as the placements of main's arguments say."""

    def __init__(self, module: Module) -> None:
        self._tied = TiedDims(module)
        main = module.functions()["main"]
        self._axes = {
            (argument, dim): axes
            for argument, record in zip(entry(main).arguments, argument_records(main), strict=True)
            for dim, axes in enumerate(_computed(argument, record, module.mesh).dims)
            if axes
        }

    def axes(self, value: Value, dim: int) -> set[str]:
        """The axes that shard an argument's dim to which this one is tied."""
        found = [axes for cut, axes in self._axes.items() if self._tied.dims_are_tied(cut, (value, dim))]
        return {axis for axes in found for axis in axes}


def _computed(argument: Value, record: Record, mesh: Mesh) -> Placement:
    """The placement in which an argument is computed with."""
    return from_mlir(argument.type).placement_on(mesh).without(record.get("stored", ()))


@dataclass(frozen=True)
class _Choice:
    """What is to be done with an attention, or with its backward."""

    methods: Mapping[str, str]
    """By axis, in the plan's order; none where no axis of more than one rank cuts the tokens."""
    copies: int = 1
    """How often each head of keys and values is repeated."""


def _operands(call: Call) -> list[Value]:
    """Queries, keys and values of an attention or its backward: (batch, heads, tokens, head size)."""
    first = ATTENTION.index(call.name)
    return list(call.args[first : first + 3])


def _choice(site: Site, cut: _CutDims, plan: Plan) -> _Choice:
    """The methods of an attention. Raises E0406 for heads that the ranks cannot share."""
    query, key, _ = _operands(site.call)
    shape = from_mlir(query.type).shape
    if len(shape) != 4:
        return _Choice({})
    sizes, tokens = dict(plan.mesh.axes), cut.axes(query, TOKENS)
    methods = {
        axis: ZIGZAG if statement.layout is Layout.ZIGZAG else str(method)
        for statement in plan.attention
        for axis, method in statement.methods.items()
        if axis in tokens and sizes[axis] > 1
    }
    _check_tokens(site, methods, sizes)
    moved = [axis for axis, method in methods.items() if method == Method.ALL_TO_ALL]
    if not moved:
        return _Choice(methods)
    over = [*sorted(cut.axes(query, HEADS) - {*moved}), *moved]
    ranks, heads, groups = prod(sizes[axis] for axis in over), shape[HEADS], from_mlir(key.type).shape[HEADS]
    if heads % ranks:
        raise refused(
            site.op,
            f"has {heads} heads, which {ranks} ranks over {', '.join(over)} cannot share evenly",
            f"expected ranks that divide {heads}",
            f"make {moved[-1]} smaller, or write method gather",
        )
    return _Choice(methods, 1 if groups == 1 else lcm(groups, ranks) // groups)


def _check_tokens(site: Site, methods: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    """Raises E0406 for tokens of queries or keys that the ranks of a ring do not divide."""
    ring = [axis for axis, method in methods.items() if method in (Method.RING, ZIGZAG)]
    ranks = prod(sizes[axis] for axis in ring)
    for what, value in zip(("queries", "keys"), _operands(site.call), strict=False):
        tokens = from_mlir(value.type).shape[TOKENS]
        if tokens % ranks:
            raise refused(
                site.op,
                f"has {what} of {tokens} tokens, which the ring of {ranks} ranks over {', '.join(ring)} cannot divide",
                f"expected a multiple of {ranks}",
                "pad the sequence, make the ring smaller, or write method gather",
            )


def _with_copies(site: Site, copies: int) -> Operation:
    """The operation on `copies` of each head of keys and values, in place of this one; their gradients are summed."""
    call, [_, key, value] = site.call, _operands(site.call)
    types = [result.type for result in site.op.results]
    with context(), mlir.InsertionPoint(site.op):
        wide = {each: _copied(site.emitter, each, copies) for each in (key, value)}
        is_backward = call.name != ATTENTION[0]
        if is_backward:
            types[1:] = [wide[key].type, wide[value].type]
        arguments = [wide.get(each, each) for each in call.values()]
        results: list[Value] = build(call.replace_values(arguments), types, site.op.location)
        made: Operation = results[0].owner
        if is_backward:
            results[1:] = [_summed(site.emitter, result, copies) for result in results[1:]]
    site.replace(*results)
    return made


def _copied(emitter: Emitter, value: Value, copies: int) -> Value:
    """(batch, heads, tokens, size) with each head `copies` times, one after the other."""
    type_ = from_mlir(value.type)
    batch, heads, *rest = type_.shape
    apart, wide = (batch, heads, 1, *rest), (batch, heads, copies, *rest)
    value = emitter.op("aten.unsqueeze.default", value, _GROUPS, type=TensorType(type_.dtype, apart))
    value = emitter.op("aten.expand.default", value, list(wide), type=TensorType(type_.dtype, wide))
    merged = (batch, heads * copies, *rest)
    return emitter.op("aten.reshape.default", value, list(merged), type=TensorType(type_.dtype, merged))


def _summed(emitter: Emitter, value: Value, copies: int) -> Value:
    """The sum over the copies of each head."""
    type_ = from_mlir(value.type)
    batch, heads, *rest = type_.shape
    apart = (batch, heads // copies, copies, *rest)
    value = emitter.op("aten.reshape.default", value, list(apart), type=TensorType(type_.dtype, apart))
    return emitter.op(
        "aten.sum.dim_IntList", value, [_GROUPS], type=TensorType(type_.dtype, (batch, heads // copies, *rest))
    )
