"""Validation of what functions say of their slots. Its form alone: that it is true is for the prover to show.

Types and views are claims of whoever wrote the program. The prover derives them again from the ops (`prover/types.py`).

Here too: which instructions may write into the memory of a state (`into`). A function may write into an argument where
each of its calls passes what lies in a state's memory. The order of reads and writes is for the prover to show. And the
kinds of functions, which name all that they take and give, and have bodies of torch ops alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod

from .arguments import DTYPES, Slot
from .limits import MOST_BYTES, MOST_SLOTS
from .ops import OWN_OPS
from .records import Function, Input, Kind, Output, SlotType
from .validate_calls import require

MOST_DIMS = 64
"""Of one tensor, as torch has it."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def validate_types(types: Sequence[SlotType], functions: Mapping[str, Function]) -> None:
    """Raise Malformed for the first type, or the first claim of a function, that has no meaning."""
    require(len(types) <= MOST_SLOTS, f"program.json.types: {len(types)}, expected at most {MOST_SLOTS}")
    for index, each in enumerate(types):
        path = f"program.json.types[{index}]"
        require(each.dtype in DTYPES, f"{path}: '{each.dtype}' is not a dtype")
        require(len(each.shape) <= MOST_DIMS, f"{path}: {len(each.shape)} dims, expected at most {MOST_DIMS}")
        require(all(extent >= 0 for extent in each.shape), f"{path}: {list(each.shape)} has a negative extent")
        size = prod(max(extent, 1) for extent in each.shape) * DTYPES[each.dtype].itemsize
        require(size <= MOST_BYTES, f"{path}: a tensor of more than 2^60 bytes")
    for name, function in functions.items():
        _function(function, len(types), f"program.json.functions.{name}")


def _function(function: Function, types: int, path: str) -> None:
    if not function.types:
        require(not function.views, f"{path}.views: there are no types")
        return
    count = len(function.types)
    require(count == function.slots, f"{path}.types: expected {function.slots}, one for each slot, found {count}")
    known = all(index is None or 0 <= index < types for index in function.types)
    require(known, f"{path}.types: there is no such type")
    operands = _operands_by_result(function)
    for index, (slot, operand) in enumerate(function.views):
        valid = slot in operands and operand in operands[slot]
        require(valid, f"{path}.views[{index}]: slot {slot} is no result of a torch op on slot {operand}")
    slots = {slot for slot, _ in function.views}
    require(len(slots) == len(function.views), f"{path}.views: a slot is listed twice")


def _operands_by_result(function: Function) -> dict[int, set[int]]:
    """By slot that torch ops write: the slots that all of them read."""
    operands: dict[int, set[int]] = {}
    for instruction in function.code:
        reads = set() if instruction.op in OWN_OPS else set(instruction.reads())
        for slot in instruction.writes():
            operands[slot] = operands[slot] & reads if slot in operands else reads
    return operands


def check_state_memory(
    entries: Sequence[str], inputs: Sequence[Input], outputs: Sequence[Output], functions: Mapping[str, Function]
) -> None:
    """Raise Malformed where an instruction writes into what is no state's memory. Calls must be valid."""
    if not any(instruction.into is not None for function in functions.values() for instruction in function.code):
        return
    returned = {output.name for output in outputs if output.kind == "state"}
    given = {each.slot for each in inputs if each.kind == "state" and each.name in returned}
    slots = _slots_of_states(entries, given, functions)
    for name, function in functions.items():
        owned = set(slots[name])
        for index, instruction in enumerate(function.code):
            path = f"program.json.functions.{name}.code[{index}]"
            if instruction.into is None:
                continue
            single = instruction.op not in OWN_OPS and len(instruction.writes()) == len(instruction.out) == 1
            require(single, f"{path}.into: {instruction.op} has no single result to write there")
            require(instruction.into in instruction.reads(), f"{path}.into: slot {instruction.into} is no operand")
            require(instruction.into in owned, f"{path}.into: slot {instruction.into} is not in the memory of a state")
            owned.update(instruction.writes())


def _slots_of_states(
    entries: Sequence[str], given: set[int], functions: Mapping[str, Function]
) -> dict[str, frozenset[int]]:
    """By function: the arguments that lie in a state's memory in each of its calls.

    `given` are the slots of the states that the entry returns anew.
    """
    slots = {name: set(given if name in entries else function.arguments) for name, function in functions.items()}
    called: set[str] = set()
    changed = True
    while changed:
        changed = False
        for name, function in functions.items():
            owned = set(slots[name])
            for instruction in function.code:
                if instruction.into is not None and instruction.into in owned:
                    owned.update(instruction.writes())
                if instruction.op != "call":
                    continue
                callee = str(instruction.args[0])
                called.add(callee)
                passed = [ref.index for ref in instruction.args[1] if isinstance(ref, Slot)]  # type: ignore[attr-defined]
                others = {a for a, slot in zip(functions[callee].arguments, passed, strict=True) if slot not in owned}
                changed |= bool(others & slots[callee])
                slots[callee] -= others
    return {name: frozenset(found if name in entries or name in called else ()) for name, found in slots.items()}


def check_kinds(functions: Mapping[str, Function], entries: Sequence[str]) -> None:
    """Raise Malformed where a function with a kind is an entry, is not closed, or does not name what it takes."""
    for name, function in functions.items():
        if function.kind is None:
            continue
        path = f"program.json.functions.{name}"
        require(name not in entries, f"{path}.kind: an entry has no kind")
        _check_names(function.kind, len(function.arguments), len(function.results), f"{path}.kind")
        for index, each in enumerate(function.code):
            is_closed = each.op not in OWN_OPS and each.into is None and not each.lane
            message = f"{path}.code[{index}]: {each.op} may not stand here: a function with a kind has torch's ops only"
            require(is_closed, message)


def _check_names(kind: Kind, arguments: int, results: int, path: str) -> None:
    require(_NAME.fullmatch(kind.name) is not None, f"{path}.name: {kind.name!r:.60} is not a name")
    require(results > 0, f"{path}.results: expected at least one")
    for what, names, count in (("operands", kind.operands, arguments), ("results", kind.results, results)):
        require(len(names) == count, f"{path}.{what}: expected a name for each of {count}, found {len(names)}")
        require(len({*names}) == count, f"{path}.{what}: a name is listed twice")
        require(all(map(_NAME.fullmatch, names)), f"{path}.{what}: {list(names)!r:.90} are not names")
    require(all(map(_NAME.fullmatch, kind.attributes)), f"{path}.attributes: a key is not a name")
