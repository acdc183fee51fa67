"""The contract of dtypes that every pass keeps, checked on types alone: no number shows what rounding hides.

- *Ops.* An op of a line of the model computes in the dtypes in which it computed before the pass.
- *Reductions of gradients.* A gradient is reduced over the ranks that share the batch, and accumulated over
  microbatches, in the dtype that its record says ("reduce").
- *Other reductions.* No pass casts a value to a shorter dtype to reduce it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ..collectives import ALL_REDUCE, REDUCE_SCATTER, synchronous
from ..interpreter.code import CALL, UNPACK, Body, Code, Ref, Step, refs, used
from ..locations import Origin
from ..pipelined_module import MICROBATCH
from ..placement import Shard

_CAST = "aten._to_copy.default"
_ADD = "aten.add.Tensor"
_REDUCTIONS = (ALL_REDUCE, REDUCE_SCATTER)
_PASSING = frozenset(
    {
        "_to_copy", "add", "view", "reshape", "_unsafe_view", "t", "transpose", "permute", "alias", "slice", "clone",
        "expand", "unsqueeze", "squeeze", "constant_pad_nd", "div", "mul", "cat", "select",
    }
)  # fmt: skip
"""Base names of aten ops that a gradient passes between its reduction and its parameter."""

Dtypes = tuple[frozenset[torch.dtype], frozenset[torch.dtype]]
"""The floating dtypes of an op's operands and results."""
_Line = tuple[str, str, int, bool]
"""An op's name, file, line, and whether it is of the backward."""


@dataclass(frozen=True)
class DtypeProblem:
    """One violation, and the op at which it is."""

    message: str
    function: str
    step: int
    """The op's index among the function's steps."""
    origin: Origin


def dtype_problems(before: Code, after: Code) -> Iterator[DtypeProblem]:
    """What a pass breaks of the contract, in order of the module after it."""
    yield from _changed_ops(before, after)
    yield from _shortened_reductions(before, after)
    yield from gradient_problems(after)


def gradient_problems(code: Code) -> Iterator[DtypeProblem]:
    """The reductions of gradients in another dtype than their records say."""
    axes = {MICROBATCH, *_batch_axes(code)}
    for number, entry in enumerate(code.entries):
        for port in code.results:
            stated, place = port.record.get("reduce"), port.places[number]
            if port.record.get("kind") != "gradient" or not isinstance(stated, str) or place is None:
                continue
            walk = _Walk(code, frozenset(axes))
            for body, index in walk.sites(entry, entry.results[place]):
                dtype = _dtype(body, body.steps[index].out[0])
                if dtype is not None and str(dtype) != f"torch.{stated}":
                    what = "accumulated" if body.steps[index].name == _ADD else "reduced"
                    message = f'gradient "{port.record.get("name")}" is {what} in {_short(dtype)}, not in {stated}'
                    yield DtypeProblem(message, body.name, index, body.steps[index].origin)


def _changed_ops(before: Code, after: Code) -> Iterator[DtypeProblem]:
    """Ops of a line that compute in other dtypes: some that they had are gone, and others are there."""
    known, found = _signatures(before), _signatures(after)
    for line, places in found.items():
        had = known.get(line, {})
        if not had or had.keys() <= places.keys():
            continue
        for dtypes, (body, index) in places.items():
            lost = next(old for old in had if old not in places)
            if dtypes not in had and not _is_longer(dtypes, lost):
                message = f"it computes {_text(dtypes)}, and before the pass {_text(lost)}"
                yield DtypeProblem(message, body.name, index, body.steps[index].origin)


def _is_longer(dtypes: Dtypes, before: Dtypes) -> bool:
    """Whether an op computes wholly in a longer dtype than before: a pass may round less than the model does."""
    return all(
        len(new) == len(old) == 1 and min(d.itemsize for d in new) > max(d.itemsize for d in old)
        for new, old in zip(dtypes, before, strict=True)
    )


def _shortened_reductions(before: Code, after: Code) -> Iterator[DtypeProblem]:
    casts = {(*_line(step), step.kwargs.get("dtype")) for body in before.bodies.values() for step in body.steps}
    gradients = set(_sites_of_gradients(after))
    for body in after.bodies.values():
        makers = {slot: index for index, step in enumerate(body.steps) for slot in step.out}
        for index, step in enumerate(body.steps):
            if synchronous(step.name) not in _REDUCTIONS or (body.name, index) in gradients:
                continue
            maker = makers.get(used(step)[0])
            cast = body.steps[maker] if maker is not None else None
            if cast is None or cast.name != _CAST or (*_line(cast), cast.kwargs.get("dtype")) in casts:
                continue
            long, short = _dtype(body, used(cast)[0]), _dtype(body, cast.out[0])
            if long is not None and short is not None and short.itemsize < long.itemsize:
                message = f"it reduces a value that the pass casts from {_short(long)} to {_short(short)}"
                yield DtypeProblem(message, body.name, index, step.origin)


def _sites_of_gradients(code: Code) -> Iterator[tuple[str, int]]:
    """The reductions of all gradients that have a record of their dtype."""
    axes = frozenset({MICROBATCH, *_batch_axes(code)})
    for number, entry in enumerate(code.entries):
        for port in code.results:
            place = port.places[number]
            if port.record.get("kind") == "gradient" and "reduce" in port.record and place is not None:
                yield from ((body.name, i) for body, i in _Walk(code, axes).sites(entry, entry.results[place]))


def _batch_axes(code: Code) -> Iterator[str]:
    """The axes that some input is sharded over."""
    for port in code.arguments:
        if port.record.get("kind") == "input":
            yield from (axis for axis, placement in port.type.placement if isinstance(placement, Shard))


@dataclass
class _Walk:
    """From a gradient back to its reductions over the batch, and the sums of its microbatches."""

    code: Code
    axes: frozenset[str]
    _seen: set[tuple[str, int]] = field(default_factory=set)

    def sites(self, body: Body, slot: int, calls: tuple[tuple[Body, Step], ...] = ()) -> Iterator[tuple[Body, int]]:
        """(function, index of the step) of each."""
        if (body.name, slot) in self._seen:
            return
        self._seen.add((body.name, slot))
        maker = next((index for index, step in enumerate(body.steps) if slot in step.out), None)
        if maker is not None:
            yield from self._of_step(body, maker, slot, calls)
        elif calls and slot in body.arguments:
            caller, call = calls[-1]
            yield from self.sites(caller, used(call)[body.arguments.index(slot)], calls[:-1])

    def _of_step(
        self, body: Body, index: int, slot: int, calls: tuple[tuple[Body, Step], ...]
    ) -> Iterator[tuple[Body, int]]:
        step = body.steps[index]
        if step.name == CALL:
            callee = self.code.bodies[step.callee]
            yield from self.sites(callee, callee.results[step.out.index(slot)], (*calls, (body, step)))
            return
        if self._is_reduction(step) or (step.name == _ADD and self.code.axis is not None and not calls):
            yield body, index
        if _passes_on(step):
            for operand in refs(step.args):
                yield from self.sites(body, operand, calls)

    def _is_reduction(self, step: Step) -> bool:
        is_sum = synchronous(step.name) in _REDUCTIONS and step.args[-1] == "sum"
        return is_sum and bool(self.axes & set(step.args[1]))


def _passes_on(step: Step) -> bool:
    if step.name.startswith("comm."):
        return bool(step.args) and isinstance(step.args[0], Ref)
    return step.name.startswith("aten.") and step.name.split(".")[1] in _PASSING


def _signatures(code: Code) -> dict[_Line, dict[Dtypes, tuple[Body, int]]]:
    """By op of a line: the dtypes that it computes in, each with the first place of it."""
    found: dict[_Line, dict[Dtypes, tuple[Body, int]]] = {}
    for body in code.bodies.values():
        for index, step in enumerate(body.steps):
            if step.name in (CALL, UNPACK, _CAST) or step.name.startswith("comm.") or not step.origin.file:
                continue
            dtypes = _floating(body, used(step)), _floating(body, step.out)
            found.setdefault(_line(step), {}).setdefault(dtypes, (body, index))
    return found


def _line(step: Step) -> _Line:
    return step.name, step.origin.file, step.origin.line, step.origin.backward


def _floating(body: Body, slots: Sequence[int]) -> frozenset[torch.dtype]:
    dtypes = (_dtype(body, slot) for slot in slots)
    return frozenset(dtype for dtype in dtypes if dtype is not None and dtype.is_floating_point)


def _dtype(body: Body, slot: int) -> torch.dtype | None:
    type_ = body.types[slot]
    return None if type_ is None else type_.dtype


def _text(dtypes: Dtypes) -> str:
    operands, results = (", ".join(sorted(map(_short, part))) or "nothing" for part in dtypes)
    return f"{results} of {operands}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
