"""Faults of programs: of slots and futures, of the collectives that a rank starts, of calls and results.

Programs have no sends, receives and microbatches, so that there are no faults of these; rows of a batch are used twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Instruction

from .program_editing import Place, freeing, is_start, is_wait, keeping, renamed

ProgramFault = Callable[[Place], Program | None]
"""The program with a fault in one of its functions; None where the function has no place for it."""


def freed_too_early(place: Place) -> Program | None:
    """A slot is freed before its last use."""
    for last in place.indices(lambda c: any(slot in c.reads() for slot in c.free)):
        slot = next(s for s in place.code[last].free if s in place.code[last].reads())
        first = next((i for i, c in enumerate(place.code) if slot in (*c.writes(), *c.reads())), last)
        if first < last:
            code = list(place.code)
            early = place.random.randrange(first, last)
            code[early], code[last] = freeing(code[early], slot), keeping(code[last], slot)
            return place.with_code(code)
    return None


def freed_twice(place: Place) -> Program | None:
    """A slot is freed again."""
    for i in place.indices(lambda c: bool(c.free)):
        if i + 1 < len(place.code):
            later = place.random.randrange(i + 1, len(place.code))
            slot = place.random.choice(place.code[i].free)
            if any(slot in c.writes() for c in place.code[i + 1 :]):
                continue
            return place.replaced(later, freeing(place.code[later], slot))
    return None


def freed_while_read(place: Place) -> Program | None:
    """What a collective reads is freed by a bystander before it is done."""
    for start in place.indices(is_start):
        wait, slot = place.wait_of(start), place.code[start].reads()[0]
        between = range(start + 1, wait or 0)
        others = [i for i in between if slot not in (*place.code[i].reads(), *place.code[i].writes())]
        freed = place.freed_at(slot, start)
        others = [i for i in others if freed is None or i < freed or freed == start]
        used = any(slot in c.reads() for c in place.code[start + 1 :]) or slot in place.function.results
        if others and not used:
            code = list(place.code)
            code[start] = keeping(code[start], slot)
            bystander = place.random.choice(others)
            code[bystander] = freeing(code[bystander], slot)
            return place.with_code(code)
    return None


def reused_while_read(place: Place) -> Program | None:
    """A slot that a collective reads is written before it is done."""
    for start in place.indices(is_start):
        wait, slot = place.wait_of(start), place.code[start].reads()[0]
        for i in range(start + 1, wait or 0):
            instruction = place.code[i]
            if (
                len(instruction.out) != 1
                or instruction.out[0] is None
                or slot in instruction.reads()
                or is_start(instruction)
            ):
                continue
            old = instruction.out[0]
            if old in (*place.function.results, *(o.slot for o in place.program.outputs)) or slot in instruction.free:
                continue
            later = [_instead(c, old, slot) for c in place.code[i + 1 :]]
            return place.with_code([*place.code[:i], replace(instruction, out=(slot,)), *later])
    return None


def _instead(instruction: Instruction, old: int, new: int) -> Instruction:
    changed = renamed(instruction, old, new)
    return replace(changed, free=tuple(new if slot == old else slot for slot in changed.free))


def wait_before_start(place: Place) -> Program | None:
    """A wait stands before the start of its collective."""
    for start in place.indices(is_start):
        wait = place.wait_of(start)
        if wait is not None:
            return place.moved(wait, start)
    return None


def wait_missing(place: Place) -> Program | None:
    """Nobody waits: users of the result read the future."""
    for wait in place.indices(is_wait):
        [future], [result] = place.code[wait].reads(), place.code[wait].out
        if result is None or result in place.function.results:
            continue
        rest = [_instead(c, result, future) for c in place.code[wait + 1 :]]
        return place.with_code([*place.code[:wait], *rest])
    return None


def future_lost(place: Place) -> Program | None:
    """Nobody waits: users of the result read what the collective read."""
    for start in place.indices(lambda c: c.op == "comm.all_reduce_start"):
        wait = place.wait_of(start)
        if wait is None:
            continue
        [operand], [result], [future] = place.code[start].reads(), place.code[wait].out, place.code[start].out
        if result is None or result in place.function.results or future is None:
            continue
        freed = place.freed_at(operand, start)
        if freed is not None:
            code = [keeping(c, operand) if i == freed else c for i, c in enumerate(place.code)]
            rest = [_instead(c, result, operand) for c in code[wait + 1 :]]
            return place.with_code([*code[:wait], *rest])
    return None


def waited_twice(place: Place) -> Program | None:
    """A second wait for the same future."""
    for wait in place.indices(is_wait):
        instruction = place.code[wait]
        again = replace(instruction, out=(place.function.slots,))
        return place.replaced(wait, keeping(instruction, *instruction.reads()), again, slots=1)
    return None


def used_before_it_is_made(place: Place) -> Program | None:
    """An instruction stands behind one that reads its result."""
    for i in place.indices(lambda c: bool(c.writes())):
        user = next(
            (j for j, c in enumerate(place.code) if j > i and set(c.reads()) & set(place.code[i].writes())), None
        )
        if user is not None:
            return place.moved(i, user)
    return None


def result_never_made(place: Place) -> Program | None:
    """The instruction that makes a result is left out."""
    reads = set(place.function.results) if place.name != "main" else {o.slot for o in place.program.outputs}
    for i in place.indices(lambda c: bool(set(c.writes()) & reads)):
        return place.replaced(i)
    return None


def other_function_called(place: Place) -> Program | None:
    """A call names another function."""
    for i in place.indices(lambda c: c.op == "call"):
        name, refs = place.code[i].args
        others = [other for other in place.program.functions if other not in ("main", name)]
        if others:
            return place.replaced(i, replace(place.code[i], args=(place.random.choice(others), refs)))
    return None


def argument_missing(place: Place) -> Program | None:
    """A call gives one argument too few."""
    for i in place.indices(lambda c: c.op == "call"):
        name, refs = place.code[i].args
        left = list(refs)  # type: ignore[call-overload]
        left.pop(place.random.randrange(len(left)))
        return place.replaced(i, replace(place.code[i], args=(name, left)))
    return None


def arguments_swapped(place: Place) -> Program | None:
    """A call gives two arguments in each other's place."""
    for i in place.indices(lambda c: c.op == "call"):
        name, refs = place.code[i].args
        swapped = list(refs)  # type: ignore[call-overload]
        if len({slot.index for slot in swapped}) < 2:
            continue
        a, b = place.random.sample(range(len(swapped)), 2)
        if not place.holds_the_same(swapped[a].index, swapped[b].index):
            swapped[a], swapped[b] = swapped[b], swapped[a]
            return place.replaced(i, replace(place.code[i], args=(name, swapped)))
    return None


def wrong_slot_read(place: Place) -> Program | None:
    """A matrix product takes another slot that is set at the time."""
    for i in place.indices(lambda c: c.op in ("aten.mm.default", "aten.addmm.default")):
        before = [slot for c in place.code[:i] for slot in c.writes()] + list(place.function.arguments)
        freed = {slot for c in place.code[:i] for slot in c.free}
        late = (
            {argument.slot for argument in place.program.inputs if argument.kind == "tangent"}
            if place.name == "main"
            else set()
        )
        old = place.random.choice(place.code[i].reads())
        others = [slot for slot in before if slot not in freed | late and not place.holds_the_same(slot, old)]
        if others:
            return place.replaced(i, renamed(place.code[i], old, place.random.choice(others)))
    return None


def wrong_reduction(place: Place) -> Program | None:
    """All ranks take a maximum in place of a sum."""
    for i in place.indices(lambda c: is_start(c) and c.kwargs.get("reduce") == "sum"):
        return place.replaced(i, replace(place.code[i], kwargs={**place.code[i].kwargs, "reduce": "max"}))
    return None


def wrong_dim(place: Place) -> Program | None:
    """All ranks gather or scatter along another dim."""
    for i in place.indices(lambda c: is_start(c) and isinstance(c.kwargs.get("dim"), int)):
        dim = place.code[i].kwargs["dim"]
        other = 1 - dim if dim in (0, 1) else 0  # type: ignore[operator]
        return place.replaced(i, replace(place.code[i], kwargs={**place.code[i].kwargs, "dim": other}))
    return None


def reduction_left_out(place: Place) -> Program | None:
    """Users of an all-reduce's result read its operand."""
    for start in place.indices(lambda c: c.op == "comm.all_reduce_start"):
        altered = without_collective(place, start)
        if altered is not None:
            return altered
    return None


def without_collective(place: Place, start: int) -> Program | None:
    """The program without one all-reduce; None where its result must have a slot of its own."""
    wait = place.wait_of(start)
    if wait is None or place.code[wait].out[0] is None:
        return None
    [operand], [result] = place.code[start].reads(), place.code[wait].out
    freed = place.freed_at(operand, start)
    alias = Instruction("aten.alias.default", (Slot(operand),), {}, (result,), (), place.code[wait].loc)
    if freed is not None and freed <= wait:
        alias = freeing(alias, operand)
    code = [keeping(c, operand) if i == freed and freed <= wait else c for i, c in enumerate(place.code)]
    code[wait] = alias
    del code[start]
    return place.with_code(code)


def rows_used_twice(place: Place) -> Program | None:
    """All ranks compute with the first rank's rows of an input that is cut over them."""
    inputs = [e for e in place.program.inputs if e.kind == "input" and e.shards and e.shards[0].dim == 0]
    if place.name != "main" or not inputs:
        return None
    operand = place.random.choice(inputs)
    shard, n = operand.shards[0], place.function.slots
    axes: Mapping[str, object] = {"axes": list(shard.axes), "dim": 0}
    first = (
        Instruction("comm.all_gather_start", (Slot(operand.slot),), axes, (n,)),
        Instruction("comm.wait", (Slot(n),), {}, (n + 1,), (n,)),
        Instruction("aten.slice.Tensor", (Slot(n + 1), 0, 0, shard.chunk, 1), {}, (n + 2,), (n + 1,)),
    )
    code = [renamed(c, operand.slot, n + 2) for c in place.code]
    function = replace(place.function, slots=n + 3, code=(*first, *code))
    begins = function.backward_at
    return place.with_function(replace(function, backward_at=None if begins is None else begins + len(first)))


def never_freed(place: Place) -> Program | None:
    """A tensor is kept to the end of its function."""
    for i in place.indices(lambda c: any(slot in c.free for slot in c.reads()) and not is_wait(c)):
        return place.replaced(i, replace(place.code[i], free=()))
    return None


PROGRAM_FAULTS: dict[str, ProgramFault] = {
    "freed too early": freed_too_early,
    "freed twice": freed_twice,
    "freed while a collective reads it": freed_while_read,
    "reused while a collective reads it": reused_while_read,
    "wait before its start": wait_before_start,
    "wait missing": wait_missing,
    "future lost": future_lost,
    "waited twice": waited_twice,
    "used before it is made": used_before_it_is_made,
    "result never made": result_never_made,
    "other function called": other_function_called,
    "argument missing": argument_missing,
    "arguments swapped": arguments_swapped,
    "wrong slot read": wrong_slot_read,
    "wrong reduction": wrong_reduction,
    "wrong dim": wrong_dim,
    "reduction left out": reduction_left_out,
    "rows of the batch used twice": rows_used_twice,
    "never freed": never_freed,
}
"""By kind; all ranks run the program with the fault."""
