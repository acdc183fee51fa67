"""Faults that some ranks' programs have and others' have not: collectives in another order, missing, or different."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Instruction

from .program_editing import Place, freeing, is_start, keeping, renamed
from .program_faults import ProgramFault, without_collective


def swapped_in_a_group(place: Place) -> Program | None:
    """Two collectives of one group are started in each other's place."""
    return _swapped(place, lambda a, b: a.kwargs["axes"] == b.kwargs["axes"])


def swapped_between_groups(place: Place) -> Program | None:
    """Two collectives of different groups are started in each other's place."""
    return _swapped(place, lambda a, b: a.kwargs["axes"] != b.kwargs["axes"])


def _swapped(place: Place, fits: Callable[[Instruction, Instruction], bool]) -> Program | None:
    """The first start of two that follow each other, put behind the second where its wait is later still."""
    starts = [i for i, c in enumerate(place.code) if is_start(c)]
    pairs = list(pairwise(starts))
    place.random.shuffle(pairs)
    begins = place.function.backward_at
    for first, second in pairs:
        wait, [operand] = place.wait_of(first), place.code[first].reads()
        is_over = wait is not None and wait < second
        is_later = begins is not None and first < begins <= second
        if is_over or is_later or not fits(place.code[first], place.code[second]):
            continue
        code = [keeping(c, operand) if first < i <= second else c for i, c in enumerate(place.code)]
        freed = any(operand in c.free for c in place.code[first : second + 1])
        late = freeing(code[first], operand) if freed else code[first]
        moved = [*code[:first], *code[first + 1 : second + 1], late, *code[second + 1 :]]
        return place.with_function(replace(place.function, code=tuple(moved)))
    return None


def missing(place: Place) -> Program | None:
    """A rank does not take part in a reduction."""
    for start in place.indices(lambda c: c.op == "comm.all_reduce_start"):
        altered = without_collective(place, start)
        if altered is not None:
            return altered
    return None


def extra(place: Place) -> Program | None:
    """A rank reduces once more."""
    for start in place.indices(is_start):
        instruction, n = place.code[start], place.function.slots
        again = Instruction(
            "comm.all_reduce_start",
            instruction.args,
            {"axes": instruction.kwargs["axes"], "reduce": "sum"},
            (n,),
            (),
            instruction.loc,
        )
        wait = Instruction("comm.wait", (Slot(n),), {}, (n + 1,), (n, n + 1), instruction.loc)
        return place.replaced(start, again, wait, instruction, slots=2)
    return None


def other_group(place: Place) -> Program | None:
    """A rank's collective is over another axis."""
    axes = [axis for axis, size in place.program.manifest.mesh if size > 1]
    for start in place.indices(is_start):
        others = [[axis] for axis in axes if [axis] != list(place.code[start].kwargs["axes"])]  # type: ignore[call-overload]
        if others:
            kwargs = {**place.code[start].kwargs, "axes": place.random.choice(others)}
            return place.replaced(start, replace(place.code[start], kwargs=kwargs))
    return None


def other_reduction(place: Place) -> Program | None:
    """A rank asks for a maximum where others ask for a sum."""
    for start in place.indices(lambda c: is_start(c) and "reduce" in c.kwargs):
        kwargs = {**place.code[start].kwargs, "reduce": "min"}
        return place.replaced(start, replace(place.code[start], kwargs=kwargs))
    return None


def other_shape(place: Place) -> Program | None:
    """A rank brings its tensor in another shape, of as many elements."""
    return _dressed(
        place,
        lambda slot, out: Instruction("aten.unsqueeze.default", (Slot(slot), 0), {}, (out,), (slot,)),
        lambda slot, out: Instruction("aten.squeeze.dim", (Slot(slot), 0), {}, (out,), (slot,)),
    )


def other_dtype(place: Place) -> Program | None:
    """A rank brings its tensor in another precision."""
    return _dressed(place, partial(_cast, torch.float32), partial(_cast, torch.float64))


def _cast(dtype: torch.dtype, slot: int, out: int | None) -> Instruction:
    return Instruction("aten._to_copy.default", (Slot(slot),), {"dtype": dtype}, (out,), (slot,))


Step = Callable[[int, int | None], Instruction]
"""An instruction from one slot, which it frees, to another."""


def _dressed(place: Place, before: Step, after: Step) -> Program | None:
    """An all-reduce of what one instruction makes of its operand, its result changed back by another."""
    for start in place.indices(lambda c: c.op == "comm.all_reduce_start"):
        wait = place.wait_of(start)
        if wait is None:
            continue
        instruction, ends, n = place.code[start], place.code[wait], place.function.slots
        [operand], [result] = instruction.reads(), ends.out
        step_before = replace(before(operand, n), free=tuple(s for s in instruction.free if s == operand))
        collective = freeing(keeping(renamed(instruction, operand, n), operand), n)
        code = list(place.code)
        code[wait : wait + 1] = [replace(ends, out=(n + 1,)), after(n + 1, result)]
        code[start : start + 1] = [step_before, collective]
        return place.with_code(code, slots=2)
    return None


def other_kind(place: Place) -> Program | None:
    """A rank gathers and adds up where others reduce: the same values, by another collective."""
    for start in place.indices(lambda c: c.op == "comm.all_reduce_start" and c.kwargs["reduce"] == "sum"):
        wait = place.wait_of(start)
        if wait is None:
            continue
        instruction, ends, n = place.code[start], place.code[wait], place.function.slots
        [operand], [result] = instruction.reads(), ends.out
        free = tuple(s for s in instruction.free if s == operand)
        lifted = Instruction("aten.unsqueeze.default", (Slot(operand), 0), {}, (n,), free)
        gather = Instruction(
            "comm.all_gather_start",
            (Slot(n),),
            {"axes": instruction.kwargs["axes"], "dim": 0},
            instruction.out,
            (n,),
            instruction.loc,
        )
        add = Instruction("aten.sum.dim_IntList", (Slot(n + 1), [0]), {}, (result,), (n + 1,))
        code = list(place.code)
        code[wait : wait + 1] = [replace(ends, out=(n + 1,)), add]
        code[start : start + 1] = [lifted, gather]
        return place.with_code(code, slots=2)
    return None


RANK_FAULTS: dict[str, ProgramFault] = {
    "collectives of a group swapped": swapped_in_a_group,
    "collectives of two groups swapped": swapped_between_groups,
    "collective missing": missing,
    "collective too many": extra,
    "other group": other_group,
    "other reduction": other_reduction,
    "other shape": other_shape,
    "other dtype": other_dtype,
    "other kind of collective": other_kind,
}
"""By kind; some ranks have the fault."""
