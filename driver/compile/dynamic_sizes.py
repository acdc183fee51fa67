"""One program for many sizes: compile samples of them, and write numbers that differ as expressions of the sizes.

Torch says for which sizes the captured graph is the same (`frontend/dynamic_sizes/size_guards.py`). The usual passes
then compile the call for its own sizes and for two or three others. If those programs differ only in numbers that
expressions of the sizes give (`backends/program/fit_sizes.py`), the program holds for all sizes under the same guards.
The last sample only confirms the expressions. Where anything else differs, every size is compiled for itself, and a
remark says what differed first.

Divisibility by ranks is a guard: a batch that dp divides and one that it does not have a program each. Sizes that no
input is sharded by are tried without this guard first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations, product, zip_longest
from math import prod

import torch

from ...backends.program.fit_sizes import Differs, distinguishes, fit, sizes_text
from ...diagnostics import StrettoError
from ...frontend.dynamic_sizes.dynamic_dims import CalledSize
from ...frontend.dynamic_sizes.size_guards import NotSymbolic, SizeGuards
from ...runtime.program.arguments import Json, Slot
from ...runtime.program.named_sizes import NamedSize, Symbolic
from ...runtime.program.program import Program
from ...runtime.reading.sizes import holds
from .request import Compiled, Found
from .shared_types import with_shared_types

Sizes = Mapping[str, int]
Multiples = tuple[float, ...]
_FAR: Multiples = (2.0, 3.0, 5.0, 4.0, 7.0)
"""Samples are looked for around these multiples of the call's sizes: near values fit too many expressions."""
_CLOSE: Multiples = (1.0, 1.0, 0.5, 1.5)
"""Around these where passes choose otherwise for far sizes; what close samples give is always confirmed."""
_NEAR = 24
"""How many values are tried around a multiple; several sizes share this number."""


def find_sizes(
    sizes: Mapping[str, CalledSize], guards: SizeGuards, first: Compiled, compiled: Callable[[Sizes], Compiled]
) -> Found:
    """The program `first` as expressions of its call's named sizes, or why not; `compiled` compiles other sizes."""
    return _Search(sizes, guards, first, compiled).run()


class _Search:
    """The search for samples of one call's sizes.

    `_free` has the call's values of the sizes that vary: the model fixes the others, or they equal one of these.
    """

    def __init__(
        self,
        sizes: Mapping[str, CalledSize],
        guards: SizeGuards,
        first: Compiled,
        compiled: Callable[[Sizes], Compiled],
    ) -> None:
        self._fixed = {name: s.size for name, s in sizes.items() if f"{name} == {s.size}" in guards.conditions}
        self._equal = _equal_names(sizes, guards.conditions)
        varying = [name for name in sizes if name not in self._fixed and name not in self._equal]
        self._free = {name: sizes[name].size for name in varying}
        self._sizes = sizes
        self._guards = guards
        self._parts = _part_counts(first.program)
        self._input_parts = {name: _input_part_counts(first.program, sizes[name]) for name in self._free}
        self._compile = compiled
        self._multiples = _FAR
        self._samples: list[tuple[Sizes, Compiled]] = [(self._free, first)]

    def run(self) -> Found:
        """Try the guards that inputs need, then those that prove to be needed, then all."""
        if not self._free:
            return Found(None, f"the model itself fixes {', '.join(self._fixed)}")
        first_reason = ""
        of_inputs = _divisibility(self._free, self._input_parts)
        of_all = _divisibility(self._free, dict.fromkeys(self._free, self._parts[::-1]))
        attempts: list[tuple[Callable[[], tuple[str, ...]], Multiples]] = [
            (lambda: of_inputs, _FAR),
            (lambda: of_inputs, _CLOSE),
            (lambda: self._needed(of_inputs, of_all), _CLOSE),
            (lambda: of_all, _CLOSE),
        ]
        for divisibility, self._multiples in attempts:
            try:
                program = self._symbolic((*self._guards.conditions, *divisibility()))
            except (Differs, _NoSample) as error:
                first_reason = first_reason or str(error)
            else:
                return Found(program.symbolic, "", len(self._samples), program)
        return Found(None, first_reason, len(self._samples))

    def _needed(self, of_inputs: tuple[str, ...], of_all: tuple[str, ...]) -> tuple[str, ...]:
        """`of_inputs`, and those of `of_all` that change the instructions when they alone do not hold."""
        doubtful = [condition for condition in of_all if condition not in of_inputs]
        needed = of_inputs
        for index, condition in enumerate(doubtful):
            with suppress(_NoSample):  # then it follows from the others
                others = (*self._guards.conditions, *needed, *doubtful[index + 1 :], _negated(condition))
                sizes = self._sample(others, lambda sizes: 0)
                try:
                    _refuse_other_ops(self._samples[0][1].program, self._program(sizes).program, sizes)
                except Differs:
                    needed = (*needed, condition)
        return needed

    def _symbolic(self, conditions: tuple[str, ...]) -> Program:
        """Fit three programs, one of sizes whose divisibility is least like that of the call; confirm on a fourth."""
        loose = self._sample(conditions, lambda sizes: -_likeness(self._free, sizes, self._parts))
        strict = self._sample(conditions, lambda sizes: _likeness(self._free, sizes, self._parts), loose)
        samples = [self._free, loose, strict]
        programs = []
        for sizes in samples:
            programs.append(self._program(sizes))
            _refuse_other_values(programs[0], programs[-1])
            _refuse_other_ops(programs[0].program, programs[-1].program, sizes)
        shared = with_shared_types([compiled.program for compiled in programs])
        body = fit([program.to_json() for program in shared], samples, self._parts, "program")
        references = [_without_ranges(compiled.program.reference) for compiled in programs]
        reference = fit(references, samples, (), "reference")
        symbolic = Symbolic(
            tuple(NamedSize(name, size, *self._guards.ranges[name]) for name, size in self._all(self._free).items()),
            conditions,
            body.places,
            reference.places,
        )
        whole = replace(shared[0], symbolic=symbolic)
        if body.has_offsets or reference.has_offsets or self._multiples is _CLOSE:
            self._confirm(whole, self._sample(conditions, lambda sizes: 0, loose, strict))
        return whole

    def _confirm(self, whole: Program, sizes: Sizes) -> None:
        """Bind to sizes that no expression was fitted to, and compare with what they compile to."""
        compiled = self._program(sizes)
        _refuse_other_values(self._samples[0][1], compiled)
        bound, expected = whole.bind(self._all(sizes)), compiled.program
        fit([each.to_json() for each in with_shared_types([expected, bound])], [sizes, sizes], (), "program")
        references = [_without_ranges(expected.reference), _without_ranges(bound.reference)]
        fit(references, [sizes, sizes], (), "reference")

    def _program(self, sizes: Sizes) -> Compiled:
        known = next((compiled for sampled, compiled in self._samples if sampled == sizes), None)
        if known is not None:
            return known
        try:
            compiled = self._compile(self._all(sizes))
        except NotSymbolic as error:
            raise Differs(str(error)) from None
        except StrettoError as error:
            raise Differs(f"it does not compile at {sizes_text(sizes)}: {error.message}") from None
        self._samples.append((sizes, compiled))
        return compiled

    def _all(self, sizes: Sizes) -> dict[str, int]:
        """These and the sizes that follow from them, in the order of the call."""
        whole = {**sizes, **self._fixed}
        whole |= {name: whole[other] for name, other in self._equal.items()}
        return {name: whole[name] for name in self._sizes}

    def _sample(self, conditions: Sequence[str], score: Callable[[Sizes], int], *others: Sizes) -> dict[str, int]:
        """The usable sizes of the highest score. All differ from each other, from the call's and from `others`."""
        best: tuple[int, dict[str, int]] | None = None
        for sizes in self._candidates(len(others)):
            if not self._usable(sizes, conditions, others):
                continue
            scored = score(sizes)
            if best is None or scored > best[0]:
                best = scored, sizes
        if best is None:
            where = f", where {', '.join(conditions)}" if conditions else ""
            raise _NoSample(f"too few sizes hold to compare programs of{where}")
        return best[1]

    def _usable(self, sizes: Sizes, conditions: Sequence[str], others: Sequence[Sizes]) -> bool:
        names = list(self._free)
        if any(sizes[name] == taken[name] for name in names for taken in (self._free, *others)):
            return False
        if len(set(sizes.values())) < len(names) or not all(holds(text, self._all(sizes)) for text in conditions):
            return False
        return len(others) != 1 or distinguishes([self._free, *others, sizes], names)

    def _candidates(self, nth: int) -> Iterator[dict[str, int]]:
        names = list(self._free)
        ranges = [self._values(name, nth + index) for index, name in enumerate(names)]
        for values in product(*ranges):
            yield dict(zip(names, values, strict=True))

    def _values(self, name: str, turn: int) -> list[int]:
        """Values of one size to try: around a multiple of the call's, kept in its range."""
        low, high = self._guards.ranges[name]
        centre = int(self._free[name] * self._multiples[turn % len(self._multiples)]) + turn + 1
        if high is not None and centre + 4 > high:
            centre = low + (high - low) * (turn % 3 + 1) // 4
        near = range(max(low, centre - 3), centre + _NEAR // len(self._free))
        return [value for value in near if high is None or value <= high]


class _NoSample(Exception):
    """No sizes to compare with; the message has the conditions that none of them meets."""


def _equal_names(sizes: Mapping[str, CalledSize], conditions: Sequence[str]) -> dict[str, str]:
    """The names that conditions say are equal to a name before them, each with the first of its equals."""
    found: dict[str, str] = {}
    for name, other in combinations(sizes, 2):
        if f"{name} == {other}" in conditions or f"{other} == {name}" in conditions:
            found[other] = found.get(name, name)
    return found


def _refuse_other_values(compiled: Compiled, other: Compiled) -> None:
    """Raise Differs where what a capture fixed, beside its graph, follows from the sizes."""
    tree, other_tree = compiled.result.output_tree, other.result.output_tree
    if tree.leaves != other_tree.leaves or tree.spec != other_tree.spec:
        raise Differs("what the forward returns beside tensors follows from the sizes")
    first, second = compiled.own_capture.constants, other.own_capture.constants
    differing = [name for name in first if name not in second or not torch.equal(first[name], second[name])]
    if differing or len(first) != len(second):
        raise Differs(f"the tensor {next(iter(differing), 'constant')} that the forward makes follows from the sizes")


def _refuse_other_ops(program: Program, other: Program, sizes: Sizes) -> None:
    """Raise Differs where two programs have other instructions, before more is compiled."""
    for name, function in program.functions.items():
        ops = [instruction.op for instruction in function.code]
        others = [instruction.op for instruction in other.functions[name].code] if name in other.functions else []
        if ops != others:
            pairs = list(zip_longest(others, ops, fillvalue="none"))
            index, (there, here) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            raise Differs(f'instruction {index} of "{name}" is {there} at {sizes_text(sizes)}, and {here} now')


def _part_counts(program: Program) -> tuple[int, ...]:
    """Into how many parts a dim may be sharded: the products of mesh axes and of the microbatch axis."""
    axes = [size for _, size in program.manifest.mesh if size > 1]
    axes += [program.pipeline.microbatches] if program.pipeline is not None else []
    return tuple(sorted({prod(chosen) for n in range(1, len(axes) + 1) for chosen in combinations(axes, n)}))


def _input_part_counts(program: Program, size: CalledSize) -> tuple[int, ...]:
    """Into how many parts, of ranks and microbatches, the program's inputs shard the dims of a size."""
    sliced = _sliced_into_microbatches(program)
    counts = set()
    for tensor in program.of_kind("input"):
        for dim in range(len(tensor.shape)):
            parts = prod(program.mesh.size(shard.axes) for shard in tensor.shards if shard.dim == dim)
            if program.pipeline is not None and (tensor.name, dim) in sliced:
                parts *= program.pipeline.microbatches
            if parts > 1 and (tensor.index, dim) in size.places:
                counts.add(parts)
    return tuple(sorted(counts))


def _sliced_into_microbatches(program: Program) -> set[tuple[str, int]]:
    """(name, dim) of the inputs of which a pipeline's stages take slices."""
    sliced = set()
    for entry in program.entries if program.pipeline is not None else ():
        names = {argument.slot: argument.name for argument in entry.inputs if argument.kind == "input"}
        for instruction in program.functions[entry.name].code:
            match instruction.args:
                case (Slot(slot), int(dim), *_) if instruction.op == "aten.slice.Tensor" and slot in names:
                    sliced.add((names[slot], dim))
    return sliced


def _without_ranges(reference: Json) -> Json:
    """A reference without the ranges of inputs, which come from the values of the call and not from its sizes."""
    checks = reference.get("stated") if isinstance(reference, Mapping) else None
    if not isinstance(reference, Mapping) or not isinstance(checks, Mapping):
        return reference
    return {**reference, "stated": {key: value for key, value in checks.items() if key != "ranges"}}


def _divisibility(sizes: Sizes, part_counts: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Conditions that each size be divisible by its counts of parts, or not, as it is now."""
    return tuple(
        f"{name} % {parts} {'==' if sizes[name] % parts == 0 else '!='} 0"
        for name, counts in part_counts.items()
        for parts in counts
    )


def _negated(condition: str) -> str:
    """The opposite of a condition of divisibility."""
    return condition.replace("==", "!=") if "==" in condition else condition.replace("!=", "==")


def _likeness(sizes: Sizes, others: Sizes, parts: Sequence[int]) -> int:
    """How many pairs of a name and a count of parts agree: the count divides both sizes, or neither."""
    return sum((sizes[name] % k == 0) == (others[name] % k == 0) for name in sizes for k in parts)
