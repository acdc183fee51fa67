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


def freed_too_early(at: Place) -> Program | None:
    """A slot is freed before its last use."""
    for last in at.indices(lambda c: any(slot in c.reads() for slot in c.free)):
        slot = next(s for s in at.code[last].free if s in at.code[last].reads())
        first = next((i for i, c in enumerate(at.code) if slot in (*c.writes(), *c.reads())), last)
        if first < last:
            code = list(at.code)
            early = at.random.randrange(first, last)
            code[early], code[last] = freeing(code[early], slot), keeping(code[last], slot)
            return at.with_code(code)
    return None


def freed_twice(at: Place) -> Program | None:
    """A slot is freed again."""
    for i in at.indices(lambda c: bool(c.free)):
        if i + 1 < len(at.code):
            later = at.random.randrange(i + 1, len(at.code))
            slot = at.random.choice(at.code[i].free)
            if any(slot in c.writes() for c in at.code[i + 1 :]):
                continue
            return at.replaced(later, freeing(at.code[later], slot))
    return None


def freed_while_read(at: Place) -> Program | None:
    """What a collective reads is freed by a bystander before it is done."""
    for start in at.indices(is_start):
        wait, slot = at.wait_of(start), at.code[start].reads()[0]
        between = range(start + 1, wait or 0)
        others = [i for i in between if slot not in (*at.code[i].reads(), *at.code[i].writes())]
        freed = at.freed_at(slot, start)
        others = [i for i in others if freed is None or i < freed or freed == start]
        used = any(slot in c.reads() for c in at.code[start + 1 :]) or slot in at.function.results
        if others and not used:
            code = list(at.code)
            code[start] = keeping(code[start], slot)
            bystander = at.random.choice(others)
            code[bystander] = freeing(code[bystander], slot)
            return at.with_code(code)
    return None


def reused_while_read(at: Place) -> Program | None:
    """A slot that a collective reads is written before it is done."""
    for start in at.indices(is_start):
        wait, slot = at.wait_of(start), at.code[start].reads()[0]
        for i in range(start + 1, wait or 0):
            each = at.code[i]
            if len(each.out) != 1 or each.out[0] is None or slot in each.reads() or is_start(each):
                continue
            old = each.out[0]
            if old in (*at.function.results, *(o.slot for o in at.program.outputs)) or slot in each.free:
                continue
            later = [_instead(c, old, slot) for c in at.code[i + 1 :]]
            return at.with_code([*at.code[:i], replace(each, out=(slot,)), *later])
    return None


def _instead(each: Instruction, old: int, new: int) -> Instruction:
    changed = renamed(each, old, new)
    return replace(changed, free=tuple(new if slot == old else slot for slot in changed.free))


def wait_before_start(at: Place) -> Program | None:
    """A wait stands before the start of its collective."""
    for start in at.indices(is_start):
        wait = at.wait_of(start)
        if wait is not None:
            return at.moved(wait, start)
    return None


def wait_missing(at: Place) -> Program | None:
    """Nobody waits: users of the result read the future."""
    for wait in at.indices(is_wait):
        [future], [result] = at.code[wait].reads(), at.code[wait].out
        if result is None or result in at.function.results:
            continue
        rest = [_instead(c, result, future) for c in at.code[wait + 1 :]]
        return at.with_code([*at.code[:wait], *rest])
    return None


def future_lost(at: Place) -> Program | None:
    """Nobody waits: users of the result read what the collective read."""
    for start in at.indices(lambda c: c.op == "comm.all_reduce_start"):
        wait = at.wait_of(start)
        if wait is None:
            continue
        [operand], [result], [future] = at.code[start].reads(), at.code[wait].out, at.code[start].out
        if result is None or result in at.function.results or future is None:
            continue
        freed = at.freed_at(operand, start)
        if freed is not None:
            code = [keeping(c, operand) if i == freed else c for i, c in enumerate(at.code)]
            rest = [_instead(c, result, operand) for c in code[wait + 1 :]]
            return at.with_code([*code[:wait], *rest])
    return None


def waited_twice(at: Place) -> Program | None:
    """A second wait for the same future."""
    for wait in at.indices(is_wait):
        each = at.code[wait]
        again = replace(each, out=(at.function.slots,))
        return at.replaced(wait, keeping(each, *each.reads()), again, slots=1)
    return None


def used_before_it_is_made(at: Place) -> Program | None:
    """An instruction stands behind one that reads its result."""
    for i in at.indices(lambda c: bool(c.writes())):
        user = next((j for j, c in enumerate(at.code) if j > i and set(c.reads()) & set(at.code[i].writes())), None)
        if user is not None:
            return at.moved(i, user)
    return None


def result_never_made(at: Place) -> Program | None:
    """The instruction that makes a result is left out."""
    wanted = set(at.function.results) if at.name != "main" else {o.slot for o in at.program.outputs}
    for i in at.indices(lambda c: bool(set(c.writes()) & wanted)):
        return at.replaced(i)
    return None


def other_function_called(at: Place) -> Program | None:
    """A call names another function."""
    for i in at.indices(lambda c: c.op == "call"):
        name, refs = at.code[i].args
        others = [other for other in at.program.functions if other not in ("main", name)]
        if others:
            return at.replaced(i, replace(at.code[i], args=(at.random.choice(others), refs)))
    return None


def argument_missing(at: Place) -> Program | None:
    """A call gives one argument too few."""
    for i in at.indices(lambda c: c.op == "call"):
        name, refs = at.code[i].args
        left = list(refs)  # type: ignore[call-overload]
        left.pop(at.random.randrange(len(left)))
        return at.replaced(i, replace(at.code[i], args=(name, left)))
    return None


def arguments_swapped(at: Place) -> Program | None:
    """A call gives two arguments in each other's place."""
    for i in at.indices(lambda c: c.op == "call"):
        name, refs = at.code[i].args
        swapped = list(refs)  # type: ignore[call-overload]
        if len({each.index for each in swapped}) < 2:
            continue
        a, b = at.random.sample(range(len(swapped)), 2)
        if not at.holds_the_same(swapped[a].index, swapped[b].index):
            swapped[a], swapped[b] = swapped[b], swapped[a]
            return at.replaced(i, replace(at.code[i], args=(name, swapped)))
    return None


def wrong_slot_read(at: Place) -> Program | None:
    """A matrix product takes another slot that is set at the time."""
    for i in at.indices(lambda c: c.op in ("aten.mm.default", "aten.addmm.default")):
        before = [slot for c in at.code[:i] for slot in c.writes()] + list(at.function.arguments)
        freed = {slot for c in at.code[:i] for slot in c.free}
        late = {each.slot for each in at.program.inputs if each.kind == "tangent"} if at.name == "main" else set()
        old = at.random.choice(at.code[i].reads())
        others = [slot for slot in before if slot not in freed | late and not at.holds_the_same(slot, old)]
        if others:
            return at.replaced(i, renamed(at.code[i], old, at.random.choice(others)))
    return None


def wrong_reduction(at: Place) -> Program | None:
    """All ranks take a maximum in place of a sum."""
    for i in at.indices(lambda c: is_start(c) and c.kwargs.get("reduce") == "sum"):
        return at.replaced(i, replace(at.code[i], kwargs={**at.code[i].kwargs, "reduce": "max"}))
    return None


def wrong_dim(at: Place) -> Program | None:
    """All ranks gather or scatter along another dim."""
    for i in at.indices(lambda c: is_start(c) and isinstance(c.kwargs.get("dim"), int)):
        dim = at.code[i].kwargs["dim"]
        other = 1 - dim if dim in (0, 1) else 0  # type: ignore[operator]
        return at.replaced(i, replace(at.code[i], kwargs={**at.code[i].kwargs, "dim": other}))
    return None


def reduction_left_out(at: Place) -> Program | None:
    """Users of an all-reduce's result read its operand."""
    for start in at.indices(lambda c: c.op == "comm.all_reduce_start"):
        found = without_collective(at, start)
        if found is not None:
            return found
    return None


def without_collective(at: Place, start: int) -> Program | None:
    """The program without one all-reduce; None where its result must have a slot of its own."""
    wait = at.wait_of(start)
    if wait is None or at.code[wait].out[0] is None:
        return None
    [operand], [result] = at.code[start].reads(), at.code[wait].out
    freed = at.freed_at(operand, start)
    alias = Instruction("aten.alias.default", (Slot(operand),), {}, (result,), (), at.code[wait].loc)
    if freed is not None and freed <= wait:
        alias = freeing(alias, operand)
    code = [keeping(c, operand) if i == freed and freed <= wait else c for i, c in enumerate(at.code)]
    code[wait] = alias
    del code[start]
    return at.with_code(code)


def rows_used_twice(at: Place) -> Program | None:
    """All ranks compute with the first rank's rows of an input that is cut over them."""
    inputs = [e for e in at.program.inputs if e.kind == "input" and e.shards and e.shards[0].dim == 0]
    if at.name != "main" or not inputs:
        return None
    given = at.random.choice(inputs)
    shard, n = given.shards[0], at.function.slots
    axes: Mapping[str, object] = {"axes": list(shard.axes), "dim": 0}
    first = (
        Instruction("comm.all_gather_start", (Slot(given.slot),), axes, (n,)),
        Instruction("comm.wait", (Slot(n),), {}, (n + 1,), (n,)),
        Instruction("aten.slice.Tensor", (Slot(n + 1), 0, 0, shard.chunk, 1), {}, (n + 2,), (n + 1,)),
    )
    code = [renamed(c, given.slot, n + 2) for c in at.code]
    function = replace(at.function, slots=n + 3, code=(*first, *code))
    begins = function.backward_at
    return at.with_function(replace(function, backward_at=None if begins is None else begins + len(first)))


def never_freed(at: Place) -> Program | None:
    """A tensor is kept to the end of its function."""
    for i in at.indices(lambda c: any(slot in c.free for slot in c.reads()) and not is_wait(c)):
        return at.replaced(i, replace(at.code[i], free=()))
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
