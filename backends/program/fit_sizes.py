"""Find which numbers of a program follow from named sizes, from programs that were compiled for several values of them.

The programs must be the same but for whole numbers, and of each that differs one expression must tell all its values:

    batch, seq = 4, 16 | 6, 10 | 10, 21   ->   64, 60, 210 is "batch * seq", and 2, 3, 5 is "(batch + 1) // 2"

Expressions are what shapes are made of: products, parts of them that ranks hold (rounded up), and such with something
added, as where a token is put before the others. The values are to be chosen (`distinguishes`) so that no two products
can be taken for each other. What passes do inside is not asked: whatever they do, it shows in the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from ...runtime.program.arguments import Json
from ...runtime.program.named_sizes import ExpressionTree
from ...runtime.program.sizes import Sizes, value_of

Values = tuple[int, ...]
"""One number in each sample."""


class Differs(Exception):
    """The programs differ in more than sizes; the message names the first place."""


@dataclass(frozen=True)
class Fitted:
    """The numbers that differ, and what is known of how they were found."""

    places: ExpressionTree
    has_offsets: bool
    """Whether an expression with something added is among them: two numbers of it were chosen, not one."""


def fit(trees: Sequence[Json], samples: Sequence[Sizes], parts: Sequence[int], name: str) -> Fitted:
    """The places in which `trees` differ, with an expression for each.

    `samples` are the sizes that each tree was made for, `parts` the numbers of ranks that may share a dim, `name` what
    errors call the file. Raises Differs.
    """
    fitter = _Fitter(samples, parts)
    found = fitter.places(list(trees), name)
    return Fitted(found if isinstance(found, Mapping) else {}, fitter.has_offsets)


def distinguishes(samples: Sequence[Sizes], names: Sequence[str]) -> bool:
    """Whether no product of sizes, nor a multiple of it with something added, looks in three samples like another."""
    terms = [tuple(value_of(text, each) for each in samples) for text in _products(names)]
    return all(_independent(a, b) for a, b in combinations(terms, 2))


def _independent(a: Values, b: Values) -> bool:
    return (a[1] - a[0]) * (b[2] - b[0]) != (a[2] - a[0]) * (b[1] - b[0])


def _products(names: Sequence[str]) -> list[str]:
    """Single sizes, squares, and products of two or three of them, the simplest first."""
    singles = list(names)
    pairs = [f"{a} * {b}" for a, b in combinations(names, 2)] + [f"{a} * {a}" for a in names]
    triples = [f"{a} * {b} * {b}" for a, b in product(names, names) if a != b]
    triples += [f"{a} * {b} * {c}" for a, b, c in combinations(names, 3)]
    return singles + pairs + triples


def _share(text: str, parts: int) -> str:
    """What each of `parts` ranks holds."""
    return f"({text} + {parts - 1}) // {parts}"


class _Fitter:
    """The expressions of one set of samples."""

    def __init__(self, samples: Sequence[Sizes], parts: Sequence[int]) -> None:
        self.has_offsets = False
        self._samples = samples
        self._parts = [k for k in parts if k > 1]
        names = sorted(samples[0])
        self._names = [(name, tuple(each[name] for each in samples)) for name in names]
        self._whole = [(text, self._values(text)) for text in _products(names)]
        shares = [f"({_share(text, k)})" for text in _products(names) for k in self._parts]
        mixed = [
            f"({_share(text, k)}) * {other}"
            for text in _products(names)
            for k in self._parts
            for other in _products(names)
            if not set(text.split(" * ")) & set(other.split(" * "))
        ]
        self._shared = [(text, self._values(text)) for text in (*shares, *mixed)]
        self._known: dict[Values, tuple[str, bool] | None] = {}

    def places(self, trees: list[Json], path: str) -> ExpressionTree | str | None:
        """What differs among equal places of the trees; None where nothing does."""
        first = trees[0]
        match first:
            case dict():
                keys = self._keys(trees, path)
                found = {key: self.places([t[key] for t in trees], f"{path}.{key}") for key in keys}  # type: ignore[index, call-overload]
            case list() | tuple():
                for at, each in enumerate(trees):
                    if not isinstance(each, list | tuple) or len(each) != len(first):
                        raise self._differs(path, trees, at)
                found = {
                    str(i): self.places(list(inner), f"{path}[{i}]") for i, inner in enumerate(zip(*trees, strict=True))
                }
            case _:
                return self._leaf(trees, path)
        return {key: inner for key, inner in found.items() if inner is not None} or None

    def _keys(self, trees: list[Json], path: str) -> list[str]:
        first = trees[0]
        assert isinstance(first, dict)
        for at, each in enumerate(trees):
            if not isinstance(each, dict) or list(each) != list(first):
                raise self._differs(path, trees, at)
        return list(first)

    def _leaf(self, trees: list[Json], path: str) -> str | None:
        for at, each in enumerate(trees):
            if type(each) is not type(trees[0]) or (type(each) is not int and each != trees[0]):
                raise self._differs(path, trees, at)
        numbers = tuple(each for each in trees if isinstance(each, int))
        if len(numbers) < len(trees) or len(set(numbers)) == 1:
            return None
        if numbers not in self._known:
            self._known[numbers] = self._expression(numbers)
        found = self._known[numbers]
        if found is None:
            raise Differs(f"{path} is {_listed(numbers)}, which no product of sizes tells, at {self._at()}")
        self.has_offsets |= found[1]
        return found[0]

    def _expression(self, numbers: Values) -> tuple[str, bool] | None:
        """The simplest expression of these values, and whether something is added in it."""
        for text, terms in (*self._whole, *self._shared):
            if (factor := _ratio(numbers, terms)) is not None:
                return _times(text, factor), False
        for text, terms in self._whole:
            for k in self._parts:
                if (factor := _shared_ratio(numbers, terms, k)) is not None:
                    return _share(_times(text, factor), k), False
        return next(self._with_offsets(numbers), None)

    def _with_offsets(self, numbers: Values) -> Iterator[tuple[str, bool]]:
        """Multiples with something added, and products with such."""
        for text, terms in (*self._whole, *self._shared):
            if (line := _line(numbers, terms)) is not None:
                yield _added(_times(text, line[0]), line[1]), True
        for text, terms in (*self._whole, *self._shared):
            if any(t == 0 or n % t for n, t in zip(numbers, terms, strict=True)):
                continue
            rest = tuple(n // t for n, t in zip(numbers, terms, strict=True))
            for name, values in self._names:
                if (line := _line(rest, values)) is not None:
                    yield f"{text} * ({_added(_times(name, line[0]), line[1])})", True

    def _values(self, text: str) -> Values:
        return tuple(value_of(text, each) for each in self._samples)

    def _differs(self, path: str, trees: list[Json], at: int) -> Differs:
        def told(i: int) -> str:
            return f"{trees[i]!r:.60} at {sizes_text(self._samples[i])}"

        return Differs(f"{path} is {told(0)}, and {told(at)}")

    def _at(self) -> str:
        return "; ".join(map(sizes_text, self._samples))


def _ratio(numbers: Values, terms: Values) -> int | None:
    """The one number that makes `numbers` of `terms` by multiplication."""
    factor = numbers[0] // terms[0] if terms[0] else 0
    fits = all(n == factor * t for n, t in zip(numbers, terms, strict=True))
    return factor if factor > 0 and fits else None


def _shared_ratio(numbers: Values, terms: Values, parts: int) -> int | None:
    """The one factor with which every number is a share, rounded up, of its term times the factor."""
    low = max(-(-((n - 1) * parts + 1) // t) for n, t in zip(numbers, terms, strict=True))
    high = min(n * parts // t for n, t in zip(numbers, terms, strict=True))
    return low if low == high and low > 0 else None


def _line(numbers: Values, terms: Values) -> tuple[int, int] | None:
    """Factor and what is added, where one pair makes all `numbers` of `terms`."""
    at = next((i for i, t in enumerate(terms) if t != terms[0]), None)
    if at is None or (numbers[at] - numbers[0]) % (terms[at] - terms[0]):
        return None
    factor = (numbers[at] - numbers[0]) // (terms[at] - terms[0])
    added = numbers[0] - factor * terms[0]
    fits = all(n == factor * t + added for n, t in zip(numbers, terms, strict=True))
    return (factor, added) if factor and fits else None


def _times(text: str, factor: int) -> str:
    return text if factor == 1 else f"{text} * {factor}"


def _added(text: str, number: int) -> str:
    if number == 0:
        return text
    return f"{text} + {number}" if number > 0 else f"{text} - {-number}"


def sizes_text(sizes: Sizes) -> str:
    """Sizes as messages say them."""
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _listed(numbers: Values) -> str:
    return ", ".join(map(str, numbers))
