"""Note at each attention whose tokens an axis cuts by which method its queries meet the keys of all tokens.

Before (tokens over cp=4, keys of two heads)    After, with `attention over cp { method all_to_all }`
  %o, %l = nn.attention %q, %k, %v                %k4 = aten.reshape (aten.expand %k)     each head twice; so %v4
                                                  %o, %l = nn.attention %q, %k4, %v4 {over = [["cp", "all_to_all"]]}

An attention is found by its operation, and its axes by the inputs: those that shard a dim to which operations tie the
tokens of its queries (`tied_dims.py`). `propagate-placements` then chooses among the strategies of the method.

Where the model repeats heads of keys for the queries that share them, attention reads the heads themselves. For
`all_to_all`, ranks share heads; where heads of keys are fewer, each is repeated as often as makes them divide, if there
is more than one (`shared_heads.py`). Heads of queries that ranks cannot share are refused (E0406).

Tokens that a ring cannot divide are refused (E0406) too. With `layout zigzag` inputs are brought to it at the start of
main (`zigzag_inputs.py`), and the op's method is "zigzag", or "zigzag_bidirectional".

With `state` sums along tokens (`cumsum`, of which linear attention is made) are marked too: each rank adds up its own
tokens, and goes on from the totals of the ranks before it (`scans.py`). Attention by softmax gathers keys then. Parts
of the tokens that ranks cannot share are refused (E0406).

Source: DeepSpeed-Ulysses (arXiv:2309.14509) for all_to_all, Ring Attention (arXiv:2310.01889) for ring, TokenRing
(arXiv:2412.20501) for bidirectional, LASP-2 (arXiv:2502.07563) for state, the Llama 3 report (arXiv:2407.21783),
section 3.3.2, for gather.
Needs: level `aten`, placements on main's arguments (`place-arguments`).   Keeps: values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, prod
from typing import ClassVar

from ...dsl.attention import Attention, Layout, Method
from ...dsl.plan import Plan
from ...ir.attention_methods import ATTENTION, RINGS, STATE, ZIGZAG, ZIGZAG_BIDIRECTIONAL, ZIGZAGS, band_of, set_methods
from ...ir.attributes import from_attribute, to_attribute
from ...ir.bindings import Value
from ...ir.module import Level, Module, Record, argument_records, entry
from ...ir.placement import Mesh, Placement
from ...ir.types import from_mlir
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..layers.joint_layers import joined
from ..plan_effects import key_of
from ..rewriting import Site, erase_unused, site_weights, sites
from .attention_methods import HEADS, TOKENS, refused
from .scans import find_scans
from .shared_heads import mask_of, operands_of, share_heads
from .tied_dims import TiedDims
from .zigzag_inputs import cut_zigzag

_RANKS = "ranks"
"""The attribute of an op for `_Choice.ranks`, while the pass runs."""
_ZIGZAG = {Method.RING: ZIGZAG, Method.BIDIRECTIONAL: ZIGZAG_BIDIRECTIONAL}
"""By method, its name where tokens are cut zigzag."""
_OF_SOFTMAX = {Method.STATE: str(Method.GATHER)}
"""The method of attention by softmax, where a plan's is for linear attention: as LASP-2H has it."""
_ALL_SCORES = "the ring computes all scores: it is not known which keys the mask hides"
_VIEWS = ("aten.unsqueeze.default", "aten.expand.default", "aten.reshape.default", "aten.clone.default")
"""What repeats heads, and is of no use where attention reads the heads themselves."""


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
            set_methods(site.op, choice.methods)
            if choice.methods:
                site.op.attributes[_RANKS] = to_attribute(choice.ranks)
            for axis, method in choice.methods.items():
                remarks.applied(f"{method} over {axis}", site.origin, weights[site.function])
                if method in RINGS and _may_show_all(site):
                    remarks.missed(_ALL_SCORES, site.origin, weights[site.function])
        obeyed = {axis for choice in choices for axis in choice.methods}
        for scan in [*find_scans(module, self.plan, cut.axes)]:
            for op in scan.operations:
                set_methods(op, dict.fromkeys(scan.axes, STATE))
            for axis in scan.axes:
                remarks.applied(f"state over {axis}", scan.site.origin, weights[scan.site.function])
            obeyed.update(scan.axes)
        with joined(module):
            for site in sites(module, ATTENTION):
                if _RANKS in site.op.attributes:
                    ranks = int(from_attribute(site.op.attributes[_RANKS]))
                    del site.op.attributes[_RANKS]
                    if ranks:
                        share_heads(site, ranks)
        for function in module.functions().values():
            erase_unused(function, _VIEWS)
        obeyed_methods = {axis: method for choice in choices for axis, method in choice.methods.items()}
        if not {*ZIGZAGS}.isdisjoint(obeyed_methods.values()):
            cut_zigzag(module, obeyed_methods)
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
    ranks: int = 1
    """How many ranks share its heads; 0 where they do not divide them, and heads stay as they are."""


def _choice(site: Site, cut: _CutDims, plan: Plan) -> _Choice:
    """The methods of an attention. Raises E0406 for heads that the ranks cannot share."""
    query, *_ = operands_of(site.call)
    shape = from_mlir(query.type).shape
    if len(shape) != 4:
        return _Choice({})
    sizes, tokens = dict(plan.mesh.axes), cut.axes(query, TOKENS)
    methods = {
        axis: (_ZIGZAG if statement.layout is Layout.ZIGZAG else _OF_SOFTMAX).get(method, str(method))
        for statement in plan.attention
        for axis, method in statement.methods.items()
        if axis in tokens and sizes[axis] > 1
    }
    _check_tokens(site, methods, sizes)
    moved = [axis for axis, method in methods.items() if method == Method.ALL_TO_ALL]
    over = [*sorted(cut.axes(query, HEADS) - {*moved}), *moved]
    ranks, heads = prod(sizes[axis] for axis in over), shape[HEADS]
    if heads % ranks and moved:
        raise refused(
            site.op,
            f"has {heads} heads, which {ranks} ranks over {', '.join(over)} cannot share evenly",
            f"expected ranks that divide {heads}",
            f"make {moved[-1]} smaller, or write method gather",
        )
    return _Choice(methods, ranks if heads % ranks == 0 else 0)


def _may_show_all(site: Site) -> bool:
    """Whether an attention has a mask of which it is not known that it hides keys by their distance."""
    return mask_of(site.call) is not None and band_of(site.op) == (-inf, inf)


def _check_tokens(site: Site, methods: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    """Raises E0406 for tokens of queries or keys that the ranks of a ring do not divide."""
    ring = [axis for axis, method in methods.items() if method in RINGS]
    ranks = prod(sizes[axis] for axis in ring)
    for what, value in zip(("queries", "keys"), operands_of(site.call), strict=False):
        tokens = from_mlir(value.type).shape[TOKENS]
        if tokens % ranks:
            raise refused(
                site.op,
                f"has {what} of {tokens} tokens, which the ring of {ranks} ranks over {', '.join(ring)} cannot divide",
                f"expected a multiple of {ranks}",
                "pad the sequence, make the ring smaller, or write method gather",
            )
