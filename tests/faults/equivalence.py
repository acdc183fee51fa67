"""Why a fault that nobody finds is none: followed through all values of a run, to where it ends.

The module runs with and without the fault, all values of all ranks are compared, and the operations are told that take
a value that differs and give one that does not. By what these are, the fault is explained, or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any

import torch
from stretto.ir.bindings import Operation, Value, mlir
from stretto.ir.equivalence.compare import relative_error
from stretto.ir.interpreter import Floats, run, run_ranks
from stretto.ir.interpreter.code import CALL, Body, Code, Step, decode, decoded, used
from stretto.ir.module import Module
from torch import Tensor

from .checkers import SEEDS, TOLERANCE, Baseline, baseline, ranks
from .mutants import Mutant

Slot = tuple[str, int]
"""A function and the number of a value in it."""


class Reason(StrEnum):
    """Why a fault changes no result."""

    SAME = "computes the same on every input"
    UNUSED = "nothing uses what differs"
    REDUCED = "the ranks' sum is the same"
    UNSELECTED = "what differs is masked, cut off or not looked up"
    COMPARED = "compared with what both are on one side of"
    SHIFT = "a maximum that a softmax takes off and adds again"
    ROUNDING = "reaches nothing but results that are zero up to rounding"
    ORDERED = "ranks come together in this order too"
    CENTERED = "added to every element, which a norm takes off"
    CANCELS = "in a sum that is zero up to rounding, such as a key bias's gradient"


_COMPARISONS = ("eq", "ne", "ge", "gt", "le", "lt")
_ENDS: dict[str, Reason] = {
    **dict.fromkeys(("comm.all_reduce", "comm.reduce_scatter"), Reason.REDUCED),
    **dict.fromkeys(("comm.all_reduce_start", "comm.reduce_scatter_start"), Reason.REDUCED),
    **dict.fromkeys(
        (
            "comm.mask", "comm.shard", "aten.where.self", "aten.where.ScalarOther", "aten.slice.Tensor",
            "aten.logical_and.default", "aten.bitwise_and.Tensor", "aten.gather.default", "aten.embedding.default",
            "aten.index.Tensor",
        ),
        Reason.UNSELECTED,
    ),
    **{f"aten.{how}.{of}": Reason.COMPARED for how in _COMPARISONS for of in ("Scalar", "Tensor")},
    "aten.add.Tensor": Reason.SHIFT,
    "aten.sum.dim_IntList": Reason.CANCELS,
    **dict.fromkeys(("nn.layer_norm", "nn.layer_norm_backward"), Reason.CENTERED),
    **dict.fromkeys(
        ("aten.native_layer_norm.default", "aten.native_layer_norm_backward.default"), Reason.CENTERED
    ),
}  # fmt: skip
"""By the operation where a fault ends: why."""
_MAXIMA = ("aten.amax.default", "comm.all_reduce", "comm.all_reduce_start")


def reasons_of(mutant: Mutant) -> frozenset[Reason]:
    """Why a fault changes no result, all of it, on all inputs that were tried; empty where it is not explained."""
    reasons = [_reasons(mutant, baseline(mutant.case, mutant.level, seed)) for seed in SEEDS]
    if not all(reasons):
        return frozenset()
    together = frozenset[Reason]().union(*reasons)
    return together - {Reason.SAME} or together


def _reasons(mutant: Mutant, before: Baseline) -> frozenset[Reason]:
    spread = _Spread(before.module, mutant, before.inputs)
    if spread.results and spread.results <= before.unchecked:
        return frozenset([Reason.ROUNDING])
    if mutant.alteration.index is None or spread.results:
        return frozenset()
    if spread.site_is_the_same:
        return frozenset([Reason.SAME])
    reasons = [_ENDS.get(step.name) for step in spread.ends()]
    if None in reasons or (Reason.SHIFT in reasons and not _is_maximum(spread.site)):
        return frozenset()
    return frozenset(r for r in reasons if r) or frozenset([Reason.UNUSED])


def _is_maximum(site: Step) -> bool:
    return site.name in _MAXIMA and site.args[-1] != "sum"


class _Trace:
    """Keeps every value of a run."""

    def __init__(self) -> None:
        self.values: dict[tuple[int, tuple[int, ...]], list[Any]] = {}

    def begins(self, rank: int, path: tuple[int, ...]) -> None:
        """Not of interest."""

    def made(self, rank: int, path: tuple[int, ...], values: Sequence[Any]) -> None:
        """Remember them."""
        self.values[rank, path] = list(values)


class _Spread:
    """The values of a module that a fault changes, in any run of their function on any rank."""

    def __init__(self, before: Module, mutant: Mutant, inputs: Sequence[Tensor]) -> None:
        self.code = decode(before)
        self._alteration, self._rank = mutant.alteration, mutant.rank
        self._after = {name: decoded(f) for name, f in self._alteration.module.functions().items()}
        self._place: dict[Operation, int] = {op: i for steps in self._after.values() for i, op in enumerate(steps)}
        self.differs: set[Slot] = set()
        good, bad = _Trace(), _Trace()
        modules = modules_of(mutant, before)
        expected = run(before, inputs, floats=Floats.FLOAT64, observer=good)
        actual = run_ranks(modules, inputs, floats=Floats.FLOAT64, observer=bad)
        self.results = {i for i, (a, b) in enumerate(zip(expected, actual, strict=True)) if not _alike(a, b)}
        """The results of main that differ."""
        self._compare(good, bad)
        self._through_calls()

    @property
    def site(self) -> Step:
        """The step that was altered."""
        name = self._alteration.function
        return self.code.bodies[name].steps[self._alteration.index or 0]

    @property
    def site_is_the_same(self) -> bool:
        """Whether the altered step gives what it should; elsewhere memory that nobody has set may differ."""
        if self.site.name == CALL:
            return not self.differs
        name = self._alteration.function
        return not any((name, slot) in self.differs for slot in _delivered(self.code.bodies[name], self.site))

    def ends(self) -> Iterator[Step]:
        """The steps that take what differs and give what does not."""
        for name, body in self.code.bodies.items():
            for step in body.steps:
                reads_differing = any((name, slot) in self.differs for slot in used(step))
                delivered = _delivered(body, step)
                if (
                    reads_differing
                    and step.name != CALL
                    and not any((name, slot) in self.differs for slot in delivered)
                ):
                    yield step

    def _compare(self, good: _Trace, bad: _Trace) -> None:
        for (rank, path), values in good.values.items():
            name, step = self._step(path)
            others = self._others(rank, path, len(values), bad)
            for slot, value, other in zip(step.out, values, others, strict=True):
                if not _alike(value, other):
                    self.differs.add((name, slot))

    def _step(self, path: tuple[int, ...]) -> tuple[str, Step]:
        name = "main"
        for index in path[:-1]:
            name = self.code.bodies[name].steps[index].callee
        return name, self.code.bodies[name].steps[path[-1]]

    def _others(self, rank: int, path: tuple[int, ...], count: int, bad: _Trace) -> list[Any]:
        """The values that a step of the module without the fault has in the one with it."""
        if self._rank not in (None, rank):
            return bad.values.get((rank, path), [None] * count)
        name, moved = "main", []
        for index in path[:-1]:
            moved.append(self._place[self._alteration.steps[name][index]])
            name = self.code.bodies[name].steps[index].callee
        if (name, path[-1]) == (self._alteration.function, self._alteration.index):
            return [self._value(rank, tuple(moved), value, bad) for value in self._alteration.changed]
        index = self._place[self._alteration.steps[name][path[-1]]]
        return bad.values.get((rank, (*moved, index)), [None] * count)

    def _value(self, rank: int, calls: tuple[int, ...], value: Value, bad: _Trace) -> Any:
        if isinstance(value.owner, mlir.Block):
            return None
        results = bad.values.get((rank, (*calls, self._place[value.owner])))
        return None if results is None else results[value.result_number]

    def _through_calls(self) -> None:
        """What differs in a caller differs in what it calls, and the other way round, until nothing is added."""
        size = -1
        while size != len(self.differs):
            size = len(self.differs)
            for name, body in self.code.bodies.items():
                for step in body.steps:
                    if step.name == CALL:
                        self._through(name, step, self.code)

    def _through(self, name: str, step: Step, code: Code) -> None:
        callee = code.bodies[step.callee]
        pairs = [
            *(((name, a), (callee.name, b)) for a, b in zip(used(step), callee.arguments, strict=True)),
            *(((callee.name, b), (name, a)) for a, b in zip(step.out, callee.results, strict=True)),
        ]
        self.differs.update(to for source, to in pairs if source in self.differs)


def modules_of(mutant: Mutant, before: Module) -> list[Module]:
    """The module of each rank."""
    return [mutant.alteration.module if mutant.rank in (None, r) else before for r in range(ranks(before))]


def _delivered(body: Body, step: Step) -> tuple[int, ...]:
    """What a step gives; of a started collective, what waiting for it does."""
    if not step.name.endswith("_start"):
        return step.out
    return tuple(slot for other in body.steps if step.out[0] in used(other) for slot in other.out)


def _alike(value: Any, other: Any) -> bool:
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return all(_alike(a, b) for a, b in zip(value, other, strict=True))
    if value is None:
        return True
    if not isinstance(other, torch.Tensor) or value.shape != other.shape:
        return False
    return relative_error(value, other) <= TOLERANCE
