"""Sums along the tokens (`cumsum`), of which linear attention is made, where ranks are to share them by `method state`.

In the backward a sum runs from the end, as `flip(cumsum(flip(x)))`; the three go together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from math import prod

from ...dsl.attention import Method
from ...dsl.plan import Plan
from ...ir.attention_methods import SCANS
from ...ir.bindings import Operation, Value
from ...ir.module import Module
from ...ir.types import from_mlir
from ..rewriting import Site, producer, sites, users
from .attention_methods import refused

_CUMSUM, _FLIP = SCANS


@dataclass(frozen=True)
class Scan:
    """A sum along a dim whose parts ranks have."""

    site: Site
    operations: tuple[Operation, ...]
    """The sum, and the flips around it."""
    axes: tuple[str, ...]
    """The axes that cut the dim."""


def find_scans(module: Module, plan: Plan, axes_of: Callable[[Value, int], Collection[str]]) -> Iterator[Scan]:
    """The sums along tokens that axes of `method state` cut. Raises E0406 for parts that ranks cannot share.

    `axes_of` says which axes cut a dim of a value.
    """
    sizes = dict(plan.mesh.axes)
    wanted = [a for each in plan.attention if each.method is Method.STATE for a in each.axes if sizes[a] > 1]
    for site in sites(module, (_CUMSUM,)) if wanted else ():
        value, shape = site.call.args[0], site.type.shape
        dim = int(site.call.args[1]) % max(len(shape), 1)
        before, after = [value.owner] if _is_flip(value, dim) else [], users(site.op.results[0])
        flips_back = bool(after) and all(len(op.results) == 1 and _is_flip(op.results[0], dim) for op in after)
        if bool(before) != flips_back:
            continue
        source = before[0].operands[0] if before else value
        found = axes_of(source, dim)
        axes = tuple(axis for axis in wanted if axis in found)
        ranks = prod(sizes[axis] for axis in axes)
        if shape and shape[dim] % ranks:
            raise refused(
                site.op,
                f"adds up {shape[dim]} parts of the tokens, which {ranks} ranks over {', '.join(axes)} cannot share",
                f"expected a multiple of {ranks}",
                "take shorter chunks, or fewer ranks",
            )
        if axes:
            yield Scan(site, (*before, site.op, *(after if flips_back else [])), axes)


def _is_flip(value: Value, dim: int) -> bool:
    call, rank = producer(value), len(from_mlir(value.type).shape)
    return call is not None and call.name == _FLIP and [d % rank for d in call.args[1]] == [dim]
