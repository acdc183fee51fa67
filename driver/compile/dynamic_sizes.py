"""One program for many sizes: compile a call for a few of them, and find what in the program follows from them.

Torch says for which sizes the captured graph is the same (`frontend/dynamic_sizes/size_guards.py`). Then the call is
compiled for its own sizes and for two or three others by the same passes as ever; where those programs are the same but
for numbers that expressions of the sizes tell (`backends/program/fit_sizes.py`), the program holds for all sizes like
these. The last of them is not used to find the expressions that it confirms. Where anything differs, every size is
compiled for itself, and the first difference is told.

Whether ranks can share a dim evenly is part of the program: a batch that dp divides and one that it does not have
each their own. Dims that no input is cut by are tried without that condition first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations, product
from math import prod

import torch

from ...backends.program.fit_sizes import Differs, distinguishes, fit, sizes_text
from ...diagnostics import StrettoError
from ...frontend.dynamic_sizes.dynamic_dims import CalledSize
from ...frontend.dynamic_sizes.size_guards import NotSymbolic, SizeGuards
from ...runtime.program.arguments import Json, Slot
from ...runtime.program.named_sizes import NamedSize, Symbolic
from ...runtime.program.program import Program
from ...runtime.program.sizes import holds
from .request import Compiled, Found

Sizes = Mapping[str, int]
Multiples = tuple[float, ...]
_FAR: Multiples = (2.0, 3.0, 5.0, 4.0, 7.0)
"""Samples are looked for around these multiples of the call's sizes: near values are told by too many expressions."""
_CLOSE: Multiples = (1.0, 1.0, 0.5, 1.5)
"""Around these where passes choose otherwise for sizes that are far away; what is found there is always confirmed."""
_NEAR = 24
"""How many values of each size are tried there, where there is one size; fewer of each where there are more."""


def find_sizes(
    sizes: Mapping[str, CalledSize], guards: SizeGuards, first: Compiled, compiled: Callable[[Sizes], Compiled]
) -> Found:
    """What of the program `first` follows from the named sizes of its call; `compiled` makes the program of others."""
    return _Search(sizes, guards, first, compiled).run()


class _Search:
    """The samples of one call."""

    def __init__(
        self,
        sizes: Mapping[str, CalledSize],
        guards: SizeGuards,
        first: Compiled,
        compiled: Callable[[Sizes], Compiled],
    ) -> None:
        self._fixed = {n: each.size for n, each in sizes.items() if f"{n} == {each.size}" in guards.conditions}
        self._same = _equal_names(sizes, guards.conditions)
        free = [name for name in sizes if name not in self._fixed and name not in self._same]
        self._own = {name: sizes[name].size for name in free}
        self._sizes = sizes
        self._guards = guards
        self._parts = _part_counts(first.program)
        self._cut = {name: _shares_of(first.program, sizes[name]) for name in self._own}
        self._compile = compiled
        self._multiples = _FAR
        self._made: list[tuple[Sizes, Compiled]] = [(self._own, first)]

    def run(self) -> Found:
        """Samples with the conditions that are known to be needed; where these differ, with all that prove to be."""
        if not self._own:
            return Found(None, f"the model itself fixes {', '.join(self._fixed)}")
        why = ""
        known, anyhow = (
            _evenness(self._own, each) for each in (self._cut, dict.fromkeys(self._own, self._parts[::-1]))
        )
        tries: list[tuple[Callable[[], tuple[str, ...]], Multiples]] = [
            (lambda: known, _FAR),
            (lambda: known, _CLOSE),
            (lambda: self._needed(known, anyhow), _CLOSE),
            (lambda: anyhow, _CLOSE),
        ]
        for asked, self._multiples in tries:
            try:
                found = self._symbolic((*self._guards.conditions, *asked()))
            except (Differs, _NoSample) as error:
                why = why or str(error)
            else:
                return Found(found, "", len(self._made))
        return Found(None, why, len(self._made))

    def _needed(self, known: tuple[str, ...], anyhow: tuple[str, ...]) -> tuple[str, ...]:
        """`known`, and those of `anyhow` that, broken alone, make other instructions."""
        may_be = [each for each in anyhow if each not in known]
        needed = known
        for at, each in enumerate(may_be):
            with suppress(_NoSample):  # then it follows from the others
                others = (*self._guards.conditions, *needed, *may_be[at + 1 :], _negated(each))
                broken = self._sample(others, lambda sizes: 0)
                try:
                    _refuse_other_ops(self._made[0][1].program, self._program(broken).program, broken)
                except Differs:
                    needed = (*needed, each)
        return needed

    def _symbolic(self, conditions: tuple[str, ...]) -> Symbolic:
        """Fit three programs, one of sizes that are shared unlike the call's where they may; try on a fourth."""
        loose = self._sample(conditions, lambda sizes: -_likeness(self._own, sizes, self._parts))
        strict = self._sample(conditions, lambda sizes: _likeness(self._own, sizes, self._parts), loose)
        samples = [self._own, loose, strict]
        programs = []
        for each in samples:
            programs.append(self._program(each))
            _refuse_other_values(programs[0], programs[-1])
            _refuse_other_ops(programs[0].program, programs[-1].program, each)
        body = fit([each.program.to_json() for each in programs], samples, self._parts, "program")
        reference = fit([_without_ranges(each.program.reference) for each in programs], samples, (), "reference")
        found = Symbolic(
            tuple(NamedSize(n, size, *self._guards.ranges[n]) for n, size in self._all(self._own).items()),
            conditions,
            body.places,
            reference.places,
        )
        if body.has_offsets or reference.has_offsets or self._multiples is _CLOSE:
            self._confirm(found, self._sample(conditions, lambda sizes: 0, loose, strict))
        return found

    def _confirm(self, found: Symbolic, sizes: Sizes) -> None:
        """Bind to sizes that were not asked before, and compare with what they compile to."""
        whole = replace(self._made[0][1].program, symbolic=found)
        compiled = self._program(sizes)
        _refuse_other_values(self._made[0][1], compiled)
        bound, made = whole.bind(self._all(sizes)), compiled.program
        fit([made.to_json(), bound.to_json()], [sizes, sizes], (), "program")
        references = [_without_ranges(made.reference), _without_ranges(bound.reference)]
        fit(references, [sizes, sizes], (), "reference")

    def _program(self, sizes: Sizes) -> Compiled:
        known = next((made for each, made in self._made if each == sizes), None)
        if known is not None:
            return known
        try:
            made = self._compile(self._all(sizes))
        except NotSymbolic as error:
            raise Differs(str(error)) from None
        except StrettoError as error:
            raise Differs(f"it does not compile at {sizes_text(sizes)}: {error.message}") from None
        self._made.append((sizes, made))
        return made

    def _all(self, sizes: Sizes) -> dict[str, int]:
        """With the sizes that follow from these, in the order of the call."""
        whole = {**sizes, **self._fixed}
        whole |= {name: whole[other] for name, other in self._same.items()}
        return {name: whole[name] for name in self._sizes}

    def _sample(self, conditions: Sequence[str], wish: Callable[[Sizes], int], *others: Sizes) -> dict[str, int]:
        """Sizes that hold, unlike the call's and each other's, and of such ones that `wish` gives most to."""
        best: tuple[int, dict[str, int]] | None = None
        for sizes in self._candidates(len(others)):
            if not self._usable(sizes, conditions, others):
                continue
            wished = wish(sizes)
            if best is None or wished > best[0]:
                best = wished, sizes
        if best is None:
            asked = ", ".join(conditions)
            raise _NoSample(f"too few sizes hold to compare programs of{f', where {asked}' if asked else ''}")
        return best[1]

    def _usable(self, sizes: Sizes, conditions: Sequence[str], others: Sequence[Sizes]) -> bool:
        names = list(self._own)
        if any(sizes[name] in (each[name] for each in (self._own, *others)) for name in names):
            return False
        if len(set(sizes.values())) < len(names) or not all(holds(each, self._all(sizes)) for each in conditions):
            return False
        return len(others) != 1 or distinguishes([self._own, *others, sizes], names)

    def _candidates(self, nth: int) -> Iterator[dict[str, int]]:
        names = list(self._own)
        ranges = [self._values(name, nth + at) for at, name in enumerate(names)]
        for values in product(*ranges):
            yield dict(zip(names, values, strict=True))

    def _values(self, name: str, turn: int) -> list[int]:
        """Values of one size to try: around a multiple of the call's, kept in its range."""
        low, high = self._guards.ranges[name]
        centre = int(self._own[name] * self._multiples[turn % len(self._multiples)]) + turn + 1
        if high is not None and centre + 4 > high:
            centre = low + (high - low) * (turn % 3 + 1) // 4
        near = range(max(low, centre - 3), centre + _NEAR // len(self._own))
        return [each for each in near if high is None or each <= high]


class _NoSample(Exception):
    """No sizes to compare with; says which were asked for."""


def _equal_names(sizes: Mapping[str, CalledSize], conditions: Sequence[str]) -> dict[str, str]:
    """The names that conditions say are equal to a name before them, each with the first of its equals."""
    found: dict[str, str] = {}
    for name, other in combinations(sizes, 2):
        if f"{name} == {other}" in conditions or f"{other} == {name}" in conditions:
            found[other] = found.get(name, name)
    return found


def _refuse_other_values(compiled: Compiled, other: Compiled) -> None:
    """Raise Differs where what a capture fixed, beside its graph, follows from the sizes."""
    trees = [each.capture.output_tree for each in (compiled, other)]
    if trees[0].leaves != trees[1].leaves or trees[0].spec != trees[1].spec:
        raise Differs("what the forward returns beside tensors follows from the sizes")
    first, second = compiled.capture.constants, other.capture.constants
    differing = [name for name in first if name not in second or not torch.equal(first[name], second[name])]
    if differing or len(first) != len(second):
        raise Differs(f"the tensor {next(iter(differing), 'constant')} that the forward makes follows from the sizes")


def _refuse_other_ops(program: Program, other: Program, sizes: Sizes) -> None:
    """Raise Differs where two programs are not the same instructions, before more is compiled."""
    for name, function in program.functions.items():
        ops = [each.op for each in function.code]
        others = [each.op for each in other.functions[name].code] if name in other.functions else []
        if ops != others:
            at = next((i for i, pair in enumerate(zip(ops, others, strict=False)) if len(set(pair)) > 1), len(others))
            pair = [(each[at:] or ["none"])[0] for each in (others, ops)]
            raise Differs(f'instruction {at} of "{name}" is {pair[0]} at {sizes_text(sizes)}, and {pair[1]} now')


def _part_counts(program: Program) -> tuple[int, ...]:
    """By how many ranks and microbatches a dim may be shared: the products of axes of the mesh, and of time."""
    axes = [size for _, size in program.manifest.mesh if size > 1]
    axes += [program.pipeline.microbatches] if program.pipeline is not None else []
    return tuple(sorted({prod(each) for n in range(1, len(axes) + 1) for each in combinations(axes, n)}))


def _shares_of(program: Program, size: CalledSize) -> tuple[int, ...]:
    """By how many ranks, and microbatches, the dims of a size are shared in the program's inputs."""
    over_time = _cut_over_time(program)
    found = set()
    for each in program.of_kind("input"):
        for dim in range(len(each.shape)):
            parts = prod(program.mesh.size(shard.axes) for shard in each.shards if shard.dim == dim)
            if program.pipeline is not None and (each.name, dim) in over_time:
                parts *= program.pipeline.microbatches
            if parts > 1 and (each.index, dim) in size.places:
                found.add(parts)
    return tuple(sorted(found))


def _cut_over_time(program: Program) -> set[tuple[str, int]]:
    """(name, dim) of inputs that the stages of a pipeline take slices of."""
    found = set()
    for entry in program.entries if program.pipeline is not None else ():
        names = {each.slot: each.name for each in entry.inputs if each.kind == "input"}
        for each in program.functions[entry.name].code:
            match each.args:
                case (Slot(slot), int(dim), *_) if each.op == "aten.slice.Tensor" and slot in names:
                    found.add((names[slot], dim))
    return found


def _without_ranges(reference: Json) -> Json:
    """A reference without the ranges of inputs: they are those of the call, whatever the sizes."""
    checks = reference.get("checks") if isinstance(reference, Mapping) else None
    if not isinstance(reference, Mapping) or not isinstance(checks, Mapping):
        return reference
    return {**reference, "checks": {key: value for key, value in checks.items() if key != "ranges"}}


def _evenness(sizes: Sizes, shares: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Conditions under which all of these ranks can share each size as evenly as now."""
    return tuple(
        f"{name} % {parts} {'==' if sizes[name] % parts == 0 else '!='} 0"
        for name, counts in shares.items()
        for parts in counts
    )


def _negated(condition: str) -> str:
    """The opposite of a condition of evenness."""
    return condition.replace("==", "!=") if "==" in condition else condition.replace("!=", "==")


def _likeness(sizes: Sizes, others: Sizes, parts: Sequence[int]) -> int:
    """For how many pairs of sizes and numbers of ranks both are even, or both are not."""
    return sum((sizes[name] % k == 0) == (others[name] % k == 0) for name in sizes for k in parts)
