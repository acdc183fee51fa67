"""Which values an integer input may take: what it indexes on its way through a module, and its record, tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..interpreter.code import Body, Code, Ref, Step, refs
from ..module import Level, Record
from ..types import TensorType

_PASSING = frozenset(
    {
        "reshape", "view", "slice", "constant_pad_nd", "unsqueeze", "squeeze", "expand", "t", "transpose", "permute",
        "clone", "_to_copy", "select", "where", "clamp", "alias", "split", "split_with_sizes", "unbind", "flatten",
        "sub", "masked_fill", "contiguous",
    }
)  # fmt: skip
"""Aten operations whose results hold the integers of their operands (moved into a rank's range, for `sub`)."""
_GLOBAL = frozenset({"aten.embedding.default", "aten.gather.default", "aten.ne.Scalar", "aten.eq.Scalar"})
"""What says enough where tensors are cut: the tables' types have global extents. Other operations name the rank's."""
_CONSTANT_COMPARISONS = ("aten.ne.Scalar", "aten.eq.Scalar")


@dataclass(frozen=True)
class IntegerRange:
    """Values in [low, high), and the value that marks what is to be ignored, if there is one."""

    high: int | None = None
    ignored: int | None = None
    low: int = 0

    def narrowed(self, other: IntegerRange) -> IntegerRange:
        """What satisfies both."""
        highs = [h for h in (self.high, other.high) if h is not None]
        ignored = self.ignored if other.ignored is None else other.ignored
        return IntegerRange(min(highs, default=None), ignored, max(self.low, other.low))


def integer_ranges(code: Code) -> dict[int, IntegerRange]:
    """By argument number, what the uses of an argument say: tables and classes it indexes, values compared with.

    Where its record has the range of what it held at capture, both bound it; that of the uses alone if none is in both.
    """
    walker = _Walker(code)
    for number, body in enumerate(code.entries):
        order = {port.places[number]: argument for argument, port in enumerate(code.arguments)}
        walker.walk(body, [frozenset([order[place]]) for place in range(len(body.arguments))])
    for argument, port in enumerate(code.arguments):
        held = _held(port.record)
        if held is not None:
            used = walker.found.get(argument, held)
            both = replace(held, ignored=used.ignored) if used.high is None else used.narrowed(held)
            if both.high is not None and both.low < both.high:
                walker.found[argument] = both
    return walker.found


def _held(record: Record) -> IntegerRange | None:
    """The range that a record has; None for what is none, which a file that someone wrote may hold."""
    match record.get("range"):
        case [int(low), int(high)] if low < high:
            return IntegerRange(high, low=low)
    return None


Tags = frozenset[int]


class _Walker:
    """Follows every argument through steps and calls."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self.found: dict[int, IntegerRange] = {}

    def walk(self, body: Body, given: list[Tags]) -> list[Tags]:
        """The arguments of the program whose integers each result of a function holds."""
        tags: dict[int, Tags] = dict(zip(body.arguments, given, strict=True))
        for step in body.steps:
            self._use(body, step, tags)
            for slot, made in zip(step.out, self._results(step, tags), strict=True):
                tags[slot] = made
        return [tags.get(slot, frozenset()) for slot in body.results]

    def _results(self, step: Step, tags: dict[int, Tags]) -> list[Tags]:
        if step.callee:
            given = [tags.get(slot, frozenset()) for slot in refs(step.args)]
            return self.walk(self._code.bodies[step.callee], given)
        family = step.name.split(".")[1] if "." in step.name else ""
        passes = family in _PASSING or not step.name.startswith(("aten.", "nn."))
        operands = refs(step.args)
        if family in ("sub",):
            operands = operands[:1]
        held = frozenset[int]().union(*(tags.get(slot, frozenset()) for slot in operands)) if passes else frozenset()
        return [held] * len(step.out)

    def _use(self, body: Body, step: Step, tags: dict[int, Tags]) -> None:
        rule = _RULES.get(step.name)
        if rule is None or (self._code.level is Level.COMM and step.name not in _GLOBAL):
            return
        indices, range_ = rule(lambda ref: self._extents(body, ref), step.args)
        if isinstance(indices, Ref):
            for argument in tags.get(indices.slot, frozenset()):
                self.found[argument] = self.found.get(argument, IntegerRange()).narrowed(range_)

    def _extents(self, body: Body, ref: Any) -> tuple[int, ...]:
        """The global shape of an operand, empty where it is none."""
        type_: TensorType | None = body.types[ref.slot] if isinstance(ref, Ref) else None
        return () if type_ is None else self._code.global_shape(type_)


Extents = Callable[[Any], tuple[int, ...]]
Use = tuple[Any, IntegerRange]
"""The operand that is indices, and what the operation says of them."""


def _embedding(extents: Extents, args: tuple[Any, ...]) -> Use:
    return args[1], IntegerRange(extents(args[0])[0])


def _embedding_backward(extents: Extents, args: tuple[Any, ...]) -> Use:
    return args[1], IntegerRange(args[2])


def _along_dim(extents: Extents, args: tuple[Any, ...]) -> Use:
    return args[2], IntegerRange((extents(args[0]) or (1,))[args[1]])


def _labels(extents: Extents, args: tuple[Any, ...]) -> Use:
    return args[1], IntegerRange(extents(args[0])[-1], args[-1] if isinstance(args[-1], int) else None)


def _compared(extents: Extents, args: tuple[Any, ...]) -> Use:
    value = args[1]
    return args[0], IntegerRange(None, int(value) if value < 0 else None)


def _nll(extents: Extents, args: tuple[Any, ...]) -> Use:
    return args[1], IntegerRange(extents(args[0])[-1], args[4])


def _indexed(extents: Extents, args: tuple[Any, ...]) -> Use:
    there = [(i, a) for i, a in enumerate(args[1]) if a is not None]
    dim, index = there[0]
    return index, IntegerRange(extents(args[0])[dim])


_RULES: dict[str, Callable[[Extents, tuple[Any, ...]], Use]] = {
    "aten.embedding.default": _embedding,
    "aten.embedding_dense_backward.default": _embedding_backward,
    "aten.gather.default": _along_dim,
    "aten.index_select.default": _along_dim,
    "aten.index.Tensor": _indexed,
    "aten.nll_loss_forward.default": _nll,
    "nn.cross_entropy": _labels,
    **dict.fromkeys(_CONSTANT_COMPARISONS, _compared),
}


def merged(first: dict[str, IntegerRange], second: dict[str, IntegerRange]) -> dict[str, IntegerRange]:
    """What two modules say together of arguments, by name; the first one's bounds where it has any."""
    joined = dict(second)
    for argument, range_ in first.items():
        other = joined.get(argument, IntegerRange())
        high = other.high if range_.high is None else range_.high
        joined[argument] = replace(range_.narrowed(other), high=high)
    return joined
