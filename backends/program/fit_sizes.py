"""Fit expressions in named sizes to the numbers of a program, from programs compiled for several values of the sizes.

The programs must differ only in integers. For each integer that differs, one expression must give all of its values:

    batch, seq = 4, 16 | 6, 10 | 10, 21   ->   64, 60, 210 is "batch * seq", and 2, 3, 5 is "(batch + 1) // 2"

Expressions are those that shapes consist of: products, ranks' chunks of them (rounded up), and either plus an offset,
as where a token is prepended. The caller chooses values (`distinguishes`) for which no two products look alike. The
passes are a black box: whatever they compute shows in the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from ...runtime.program.arguments import Json
from ...runtime.program.named_sizes import ExpressionTree
from ...runtime.reading.sizes import Sizes, value_of

Values = tuple[int, ...]
"""The values of one number, one per sample."""


class Differs(Exception):
    """The programs differ in more than sizes; the message names the first difference."""


@dataclass(frozen=True)
class Fitted:
    """The numbers that differ, with their expressions."""

    places: ExpressionTree
    has_offsets: bool
    """Whether an expression has an offset. It has two free numbers, so that it needs more samples to be sure."""


def fit(trees: Sequence[Json], samples: Sequence[Sizes], parts: Sequence[int], name: str) -> Fitted:
    """Fit an expression to each place in which `trees` differ.

    `samples` are the sizes of each tree, `parts` the numbers of ranks that may shard a dim, `name` the file in errors.
    Raises Differs.
    """
    fitter = _Fitter(samples, parts)
    places = fitter.places(list(trees), name)
    return Fitted(places if isinstance(places, Mapping) else {}, fitter.has_offsets)


def distinguishes(samples: Sequence[Sizes], names: Sequence[str]) -> bool:
    """Whether three samples tell apart all products of sizes, also under a factor and an offset."""
    terms = [tuple(value_of(text, sizes) for sizes in samples) for text in _products(names)]
    return all(_independent(a, b) for a, b in combinations(terms, 2))


def _independent(a: Values, b: Values) -> bool:
    return (a[1] - a[0]) * (b[2] - b[0]) != (a[2] - a[0]) * (b[1] - b[0])


def _products(names: Sequence[str]) -> list[str]:
    """Single sizes, squares, and products of two or three sizes, simplest first."""
    singles = list(names)
    pairs = [f"{a} * {b}" for a, b in combinations(names, 2)] + [f"{a} * {a}" for a in names]
    triples = [f"{a} * {b} * {b}" for a, b in product(names, names) if a != b]
    triples += [f"{a} * {b} * {c}" for a, b, c in combinations(names, 3)]
    return singles + pairs + triples


def _share(text: str, parts: int) -> str:
    """The chunk of each of `parts` ranks."""
    return f"({text} + {parts - 1}) // {parts}"


class _Fitter:
    """The candidate expressions for one set of samples."""

    def __init__(self, samples: Sequence[Sizes], parts: Sequence[int]) -> None:
        self.has_offsets = False
        self._samples = samples
        self._parts = [k for k in parts if k > 1]
        names = sorted(samples[0])
        self._names = [(name, tuple(sizes[name] for sizes in samples)) for name in names]
        self._whole = [(text, self._values(text)) for text in _products(names)]
        shares = [f"({_share(text, k)})" for text in _products(names) for k in self._parts]
        mixed = [
            f"({_share(text, k)}) * {factor}"
            for text in _products(names)
            for k in self._parts
            for factor in _products(names)
            if not set(text.split(" * ")) & set(factor.split(" * "))
        ]
        self._shared = [(text, self._values(text)) for text in (*shares, *mixed)]
        self._known: dict[Values, tuple[str, bool] | None] = {}

    def places(self, trees: list[Json], path: str) -> ExpressionTree | str | None:
        """The expressions of what differs among the trees; None if they are equal."""
        first = trees[0]
        match first:
            case dict():
                keys = self._keys(trees, path)
                fitted = {key: self.places([t[key] for t in trees], f"{path}.{key}") for key in keys}  # type: ignore[index, call-overload]
            case list() | tuple():
                for index, tree in enumerate(trees):
                    if not isinstance(tree, list | tuple) or len(tree) != len(first):
                        raise self._differs(path, trees, index)
                fitted = {
                    str(i): self.places(list(inner), f"{path}[{i}]") for i, inner in enumerate(zip(*trees, strict=True))
                }
            case _:
                return self._leaf(trees, path)
        return {key: inner for key, inner in fitted.items() if inner is not None} or None

    def _keys(self, trees: list[Json], path: str) -> list[str]:
        first = trees[0]
        assert isinstance(first, dict)
        for index, tree in enumerate(trees):
            if not isinstance(tree, dict) or list(tree) != list(first):
                raise self._differs(path, trees, index)
        return list(first)

    def _leaf(self, trees: list[Json], path: str) -> str | None:
        for index, leaf in enumerate(trees):
            if type(leaf) is not type(trees[0]) or (type(leaf) is not int and leaf != trees[0]):
                raise self._differs(path, trees, index)
        numbers = tuple(leaf for leaf in trees if isinstance(leaf, int))
        if len(numbers) < len(trees) or len(set(numbers)) == 1:
            return None
        if numbers not in self._known:
            self._known[numbers] = self._expression(numbers)
        fitted = self._known[numbers]
        if fitted is None:
            raise Differs(
                f"{path} is {_listed(numbers)}, which no expression of sizes gives, at {self._samples_text()}"
            )
        self.has_offsets |= fitted[1]
        return fitted[0]

    def _expression(self, numbers: Values) -> tuple[str, bool] | None:
        """The simplest expression with these values, and whether it has an offset."""
        for text, terms in (*self._whole, *self._shared):
            if (factor := _ratio(numbers, terms)) is not None:
                return _multiple(text, factor), False
        for text, terms in self._whole:
            for k in self._parts:
                if (factor := _shared_ratio(numbers, terms, k)) is not None:
                    return _share(_multiple(text, factor), k), False
        return next(self._with_offsets(numbers), None)

    def _with_offsets(self, numbers: Values) -> Iterator[tuple[str, bool]]:
        """Expressions with an offset, and products with such."""
        for text, terms in (*self._whole, *self._shared):
            if (line := _line(numbers, terms)) is not None:
                yield _with_offset(_multiple(text, line[0]), line[1]), True
        for text, terms in (*self._whole, *self._shared):
            if any(t == 0 or n % t for n, t in zip(numbers, terms, strict=True)):
                continue
            quotients = tuple(n // t for n, t in zip(numbers, terms, strict=True))
            for name, values in self._names:
                if (line := _line(quotients, values)) is not None:
                    yield f"{text} * ({_with_offset(_multiple(name, line[0]), line[1])})", True

    def _values(self, text: str) -> Values:
        return tuple(value_of(text, sizes) for sizes in self._samples)

    def _differs(self, path: str, trees: list[Json], index: int) -> Differs:
        def value_at(sample: int) -> str:
            return f"{trees[sample]!r:.60} at {sizes_text(self._samples[sample])}"

        return Differs(f"{path} is {value_at(0)}, and {value_at(index)}")

    def _samples_text(self) -> str:
        return "; ".join(map(sizes_text, self._samples))


def _ratio(numbers: Values, terms: Values) -> int | None:
    """The factor with numbers = factor * terms; None if there is none."""
    factor = numbers[0] // terms[0] if terms[0] else 0
    fits = all(n == factor * t for n, t in zip(numbers, terms, strict=True))
    return factor if factor > 0 and fits else None


def _shared_ratio(numbers: Values, terms: Values, parts: int) -> int | None:
    """The only factor with numbers = ceil(factor * terms / parts); None if there is not exactly one."""
    low = max(-(-((n - 1) * parts + 1) // t) for n, t in zip(numbers, terms, strict=True))
    high = min(n * parts // t for n, t in zip(numbers, terms, strict=True))
    return low if low == high and low > 0 else None


def _line(numbers: Values, terms: Values) -> tuple[int, int] | None:
    """(factor, offset) with numbers = factor * terms + offset; None if there is none."""
    index = next((i for i, t in enumerate(terms) if t != terms[0]), None)
    if index is None or (numbers[index] - numbers[0]) % (terms[index] - terms[0]):
        return None
    factor = (numbers[index] - numbers[0]) // (terms[index] - terms[0])
    offset = numbers[0] - factor * terms[0]
    fits = all(n == factor * t + offset for n, t in zip(numbers, terms, strict=True))
    return (factor, offset) if factor and fits else None


def _multiple(text: str, factor: int) -> str:
    return text if factor == 1 else f"{text} * {factor}"


def _with_offset(text: str, number: int) -> str:
    if number == 0:
        return text
    return f"{text} + {number}" if number > 0 else f"{text} - {-number}"


def sizes_text(sizes: Sizes) -> str:
    """Sizes in messages."""
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _listed(numbers: Values) -> str:
    return ", ".join(map(str, numbers))
