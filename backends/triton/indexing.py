"""Indices of elements as terms of the kernel's own index, exact under reshapes.

A kernel runs over an iteration space: one flat `index`, or a `row` and a `column`. The index of an element along one
dim of a tensor is a tuple of *terms*, outermost first, whose extents multiply to the dim's. A reshape only regroups
terms, so `(index // 64) * 64 + index % 64` never appears: neighbouring terms of one base merge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod


@dataclass(frozen=True)
class Term:
    """`(base // divisor) % extent`, where `base` is an expression in [0, total)."""

    base: str
    divisor: int
    extent: int
    total: int
    varies: frozenset[str]
    """The indices of the iteration space that it depends on."""

    def text(self) -> str:
        """The term as an expression."""
        quotient = self.base if self.divisor == 1 else f"{self.base} // {self.divisor}"
        if self.divisor * self.extent >= self.total:
            return quotient if self.divisor == 1 else f"({quotient})"
        return f"({quotient} % {self.extent})" if self.divisor == 1 else f"(({quotient}) % {self.extent})"

    def split(self, inner: int) -> tuple[Term, Term]:
        """An outer and an inner term of `inner` elements, which must divide the extent."""
        outer = replace(self, divisor=self.divisor * inner, extent=self.extent // inner)
        return outer, replace(self, extent=inner)


Dim = tuple[Term, ...]
"""The index along one dim; empty for a dim of one element."""
Index = tuple[Dim, ...]
"""The index of an element, dim by dim."""


def base_term(name: str, extent: int) -> Term:
    """An index of the iteration space itself."""
    return Term(name, 1, extent, extent, frozenset({name}))


def opaque(text: str, extent: int, varies: frozenset[str]) -> Dim:
    """The index along a dim of `extent` elements, given by an expression."""
    base = text if text.isidentifier() or (text.startswith("(") and _closes_last(text)) else f"({text})"
    return (Term(base, 1, extent, extent, varies),) if extent > 1 else ()


def _closes_last(text: str) -> bool:
    """Whether the parenthesis that a text begins with is closed by its last character."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place == len(text) - 1
    return False


def varies(terms: Iterable[Term]) -> frozenset[str]:
    """The indices of the iteration space that terms depend on."""
    return frozenset().union(*(term.varies for term in terms))


def flat(index: Index) -> tuple[Term, ...]:
    """The terms of all dims, outermost first, merged."""
    return merged(term for dim in index for term in dim)


def merged(terms: Iterable[Term]) -> tuple[Term, ...]:
    """The same number by as few terms as possible."""
    result: list[Term] = []
    for term in terms:
        if term.extent == 1:
            continue
        outer = result[-1] if result else None
        if outer is not None and outer.base == term.base and outer.divisor == term.divisor * term.extent:
            result[-1] = replace(term, extent=outer.extent * term.extent)
        else:
            result.append(term)
    return tuple(result)


def regroup(terms: Sequence[Term], shape: Sequence[int]) -> Index:
    """Terms, outermost first, as the index into a tensor of this shape with as many elements as they have."""
    left = list(merged(terms))
    dims: list[Dim] = []
    for extent in reversed(shape):
        taken: list[Term] = []
        need = extent
        while need > 1:
            term = left.pop()
            if need % term.extent == 0:
                taken.insert(0, term)
                need //= term.extent
            elif term.extent % need == 0:
                outer, inner = term.split(need)
                left.append(outer)
                taken.insert(0, inner)
                need = 1
            else:  # 6 x 4 as 8 x 3: neither divides the other, so this term and all outer ones become one number
                whole = _one([*left, term])
                inner_done = replace(whole, extent=need)
                rest = whole.extent // need
                left = [replace(whole, divisor=need, extent=rest)]
                taken.insert(0, inner_done)
                need = 1
        dims.insert(0, merged(taken))
    return tuple(dims)


def _one(terms: Sequence[Term]) -> Term:
    """Several terms as one."""
    if len(terms) == 1 and terms[0].divisor == 1 and terms[0].extent == terms[0].total:
        return terms[0]
    extent = prod(term.extent for term in terms)
    return Term(f"({linear(terms)})", 1, extent, extent, varies(terms))


def linear(terms: Iterable[Term]) -> str:
    """The number that terms stand for, as an expression; each weighs as much as those after it have elements."""
    weight, parts = 1, []
    for term in reversed(merged(terms)):
        parts.append(term.text() if weight == 1 else f"{term.text()} * {weight}")
        weight *= term.extent
    return " + ".join(reversed(parts)) if parts else "0"


def broadcast(index: Index, shape: Sequence[int]) -> Index:
    """The index into an operand of `shape` that is broadcast to the tensor that `index` is into."""
    own = index[len(index) - len(shape) :] if shape else ()
    return tuple(dim if extent != 1 else () for dim, extent in zip(own, shape, strict=True))
