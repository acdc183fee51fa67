"""Infer the valid range of integer inputs, from the tensors that they index and from their records."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..interpreter.code import Body, Code, Ref, Step, refs
from ..module import Level, Record
from ..types import TensorType

_PASSING = frozenset(
    {
        "reshape", "view", "slice", "constant_pad_nd", "unsqueeze", "squeeze", "expand", "t", "transpose", "permute",
        "clone", "_to_copy", "select", "where", "clamp", "alias", "split", "split_with_sizes", "unbind", "flatten",
        "sub", "masked_fill", "contiguous", "cat",
    }
)  # fmt: skip
"""Aten operations whose results hold the integers of their operands (shifted into a rank's range, for `sub`)."""
_GLOBAL = frozenset({"aten.embedding.default", "aten.gather.default", "aten.ne.Scalar", "aten.eq.Scalar"})
"""Operations that give a range at level `comm`, as their types have global extents; others have the rank's extents."""
_GUARDS = frozenset({"where", "masked_fill", "clamp"})
"""Aten operations that may replace an ignored value before it is used as an index."""
_CONSTANT_COMPARISONS = ("aten.ne.Scalar", "aten.eq.Scalar")


@dataclass(frozen=True)
class IntegerRange:
    """Values in [low, high), and the value of ignored labels, if any."""

    high: int | None = None
    ignored: int | None = None
    low: int = 0
    is_index: bool = field(default=False, compare=False)
    """Whether the values are indices as they stand, so that none may be the ignored one."""
    named: tuple[int, ...] = field(default=(), compare=False)
    """Values that an op treats apart: the padding index of an embedding, a number that the values are compared with."""

    def narrowed(self, other: IntegerRange) -> IntegerRange:
        """The intersection of two ranges."""
        highs = [h for h in (self.high, other.high) if h is not None]
        ignored = self.ignored if other.ignored is None else other.ignored
        is_index = self.is_index or other.is_index
        named = tuple(dict.fromkeys((*self.named, *other.named)))
        low = max(self.low, other.low)
        return IntegerRange(min(highs, default=None), None if is_index else ignored, low, is_index, named)

    def to_draw(self) -> list[int]:
        """Values that random integers of this range must have among them: the named ones, the first and the last."""
        if self.high is None:
            return []
        return [v for v in dict.fromkeys((*self.named, self.low, self.high - 1)) if self.low <= v < self.high]


def integer_ranges(code: Code) -> dict[int, IntegerRange]:
    """By argument, the range that its uses imply: indexed tables and classes, and values it is compared with.

    It is intersected with the range at capture, if the argument's record has one and the intersection is not empty.
    """
    walker = _Walker(code)
    for number, body in enumerate(code.entries):
        order = {port.places[number]: argument for argument, port in enumerate(code.arguments)}
        walker.walk(body, [_tags(order[place], code) for place in range(len(body.arguments))])
    for argument, port in enumerate(code.arguments):
        recorded = _recorded_range(port.record)
        if recorded is not None:
            by_uses = walker.ranges.get(argument, recorded)
            combined = (
                replace(recorded, ignored=by_uses.ignored, named=by_uses.named)
                if by_uses.high is None
                else by_uses.narrowed(recorded)
            )
            if combined.high is not None and combined.low < combined.high:
                walker.ranges[argument] = combined
    return walker.ranges


def _recorded_range(record: Record) -> IntegerRange | None:
    """The range in a record; None if it has none, or an invalid one (in a hand-written module)."""
    match record.get("range"):
        case [int(low), int(high)] if low < high:
            return IntegerRange(high, low=low)
    return None


Tags = frozenset[tuple[int, bool]]
"""Arguments, and whether something may have replaced their ignored values."""


def _tags(argument: int, code: Code) -> Tags:
    """What follows an argument. Parameters are followed by nothing: no op reads them as integers."""
    is_parameter = code.arguments[argument].record.get("kind") == "parameter"
    return frozenset() if is_parameter else frozenset([(argument, False)])


class _Walker:
    """Follows the values of every argument through steps and calls."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self.ranges: dict[int, IntegerRange] = {}
        self._walked: dict[tuple[str, tuple[Tags, ...]], list[Tags]] = {}
        """By function and what its operands hold: what its results hold. Another walk would find the same ranges."""

    def walk(self, body: Body, argument_tags: Sequence[Tags]) -> list[Tags]:
        """For each result of a function, the program arguments whose integers it may hold."""
        tags: dict[int, Tags] = dict(zip(body.arguments, argument_tags, strict=True))
        for step in body.steps:
            self._use(body, step, tags)
            for slot, result_tags in zip(step.out, self._results(step, tags), strict=True):
                tags[slot] = result_tags
        return [tags.get(slot, frozenset()) for slot in body.results]

    def _results(self, step: Step, tags: dict[int, Tags]) -> list[Tags]:
        if step.callee:
            operand_tags = tuple(tags.get(slot, frozenset()) for slot in refs(step.args))
            key = step.callee, operand_tags
            if key not in self._walked:
                self._walked[key] = self.walk(self._code.bodies[step.callee], operand_tags)
            return self._walked[key]
        family = step.name.split(".")[1] if "." in step.name else ""
        passes = family in _PASSING or not step.name.startswith(("aten.", "nn."))
        operands = refs(step.args)
        if family in ("sub",):
            operands = operands[:1]
        result_tags = Tags().union(*(tags.get(slot, frozenset()) for slot in operands)) if passes else frozenset()
        if family in _GUARDS:
            result_tags = frozenset((argument, True) for argument, _ in result_tags)
        return [result_tags] * len(step.out)

    def _use(self, body: Body, step: Step, tags: dict[int, Tags]) -> None:
        rule = _RULES.get(step.name)
        if rule is None or (self._code.level is Level.COMM and step.name not in _GLOBAL):
            return
        indices, range_ = rule(lambda ref: self._extents(body, ref), step.args)
        if isinstance(indices, Ref):
            for argument, guarded in tags.get(indices.slot, frozenset()):
                use = replace(range_, is_index=range_.high is not None and range_.ignored is None and not guarded)
                self.ranges[argument] = self.ranges.get(argument, IntegerRange()).narrowed(use)

    def _extents(self, body: Body, ref: Any) -> tuple[int, ...]:
        """The global shape of an operand; empty if it is not a tensor."""
        type_: TensorType | None = body.types[ref.slot] if isinstance(ref, Ref) else None
        return () if type_ is None else self._code.global_shape(type_)


Extents = Callable[[Any], tuple[int, ...]]
Use = tuple[Any, IntegerRange]
"""The index operand, and the range that the operation implies."""


def _embedding(extents: Extents, args: tuple[Any, ...]) -> Use:
    return args[1], IntegerRange(extents(args[0])[0], named=_padding(args[2:3]))


def _embedding_backward(extents: Extents, args: tuple[Any, ...]) -> Use:
    return args[1], IntegerRange(args[2], named=_padding(args[3:4]))


def _padding(stated: tuple[Any, ...]) -> tuple[int, ...]:
    """The padding index; torch says -1 where there is none."""
    return tuple(index for index in stated if isinstance(index, int) and index >= 0)


def _along_dim(extents: Extents, args: tuple[Any, ...]) -> Use:
    return args[2], IntegerRange((extents(args[0]) or (1,))[args[1]])


def _labels(extents: Extents, args: tuple[Any, ...]) -> Use:
    return args[1], IntegerRange(extents(args[0])[-1], args[-1] if isinstance(args[-1], int) else None)


def _compared(extents: Extents, args: tuple[Any, ...]) -> Use:
    value = args[1]
    if not math.isfinite(value):
        return args[0], IntegerRange()
    return args[0], IntegerRange(None, int(value)) if value < 0 else IntegerRange(named=(int(value),))


def _nll(extents: Extents, args: tuple[Any, ...]) -> Use:
    return args[1], IntegerRange(extents(args[0])[-1], args[4])


def _indexed(extents: Extents, args: tuple[Any, ...]) -> Use:
    indices = [(i, a) for i, a in enumerate(args[1]) if a is not None]
    dim, index = indices[0]
    return index, IntegerRange(extents(args[0])[dim])


_RULES: dict[str, Callable[[Extents, tuple[Any, ...]], Use]] = {
    "aten.embedding.default": _embedding,
    "aten.embedding_dense_backward.default": _embedding_backward,
    "aten.gather.default": _along_dim,
    "aten.index_select.default": _along_dim,
    "aten.index.Tensor": _indexed,
    "aten.nll_loss_forward.default": _nll,
    **dict.fromkeys(("nn.cross_entropy", "nn.nll_loss"), _labels),
    **dict.fromkeys(_CONSTANT_COMPARISONS, _compared),
}


def merged(first: dict[str, IntegerRange], second: dict[str, IntegerRange]) -> dict[str, IntegerRange]:
    """The ranges of two modules combined, by name; an upper bound of the first takes precedence."""
    joined = dict(second)
    for argument, range_ in first.items():
        other = joined.get(argument, IntegerRange())
        high = other.high if range_.high is None else range_.high
        joined[argument] = replace(range_.narrowed(other), high=high)
    return joined
