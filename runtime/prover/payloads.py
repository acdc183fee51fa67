"""The payload of each send, by the data flow of the program: it must be what the module sent there.

`carries` of a send and of its receive names a value of the module; `messages.py` compares them. `made_by` of a send
says where the lowering found its operand in the module. Here the same is found in the instructions, independently: a
send whose operand was exchanged with another's has another source than it says.

The source of a value is a short text. An argument, a result of a call (with its microbatch) and a received message have
names. An instruction on one value, such as a cast, keeps its source; one on several hashes theirs in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..program.entries import MICROBATCH
from ..program.ops import source_of_call, source_of_several
from ..program.program import Program
from ..program.records import Instruction
from .values import Refuted

_RESULT = re.compile(r"\w+\[\d+\]@\d+")
"""The name, and the source, of a call's result for one microbatch."""
_HELP = "compile the program again"


def check_payloads(program: Program) -> None:
    """Raise Refuted E0727 for the first send that does not send what it says, or that a rank sends to itself."""
    _refuse_messages_to_oneself(program)
    inputs = {entry.name: {one.slot: f"{one.kind} {one.name}" for one in entry.inputs} for entry in program.entries}
    for name, function in program.functions.items():
        names = inputs.get(name, {})
        sources = {slot: names.get(slot, f"argument {index}") for index, slot in enumerate(function.arguments)}
        for index, instruction in enumerate(function.code):
            if "made_by" in instruction.kwargs:
                _check(instruction, sources, (name, index))
            sources.update(_results(instruction, sources))


def _refuse_messages_to_oneself(program: Program) -> None:
    """Ranks of a stage that name its own coordinate as the other end."""
    if program.pipeline is None:
        return
    for stage, entry in enumerate(program.entries):
        for index, instruction in enumerate(program.functions[entry.name].code):
            kwargs = instruction.kwargs
            if kwargs.get("peer") == stage and kwargs.get("axis") == program.pipeline.axis:
                verb = "sends to" if instruction.op == "comm.send" else "receives from"
                raise Refuted("E0727", f"stage {stage} {verb} itself", ((entry.name, index),), help=_HELP)


def _check(instruction: Instruction, sources: Mapping[int, str], place: tuple[str, int]) -> None:
    [slot] = instruction.reads()
    found, made_by = sources[slot], instruction.kwargs["made_by"]
    carries = str(instruction.kwargs.get("carries", "a tensor"))
    is_other = _RESULT.fullmatch(carries) and _RESULT.fullmatch(found) and carries != found
    if found != made_by or is_other:
        made = "" if is_other else f", made by '{made_by}'"
        message = f"a message is to carry '{carries}'{made}, but what is sent is '{found}'"
        raise Refuted("E0727", message, (place,), help=_HELP)


def _results(instruction: Instruction, sources: Mapping[int, str]) -> dict[int, str]:
    """The sources of an instruction's results, by slot."""
    if instruction.op == "call":
        name, microbatch = str(instruction.args[0]), _microbatch(instruction)
        return {
            slot: source_of_call(name, index, microbatch)
            for index, slot in enumerate(instruction.out)
            if slot is not None
        }
    if instruction.op == "comm.receive_start":
        return dict.fromkeys(instruction.writes(), str(instruction.kwargs.get("carries", "a message")))
    source = source_of_several([sources[slot] for slot in instruction.reads()])
    if len(instruction.out) == 1:
        return dict.fromkeys(instruction.writes(), source)
    return {slot: f"{source}#{index}" for index, slot in enumerate(instruction.out) if slot is not None}


def _microbatch(call: Instruction) -> int | list[int] | None:
    match call.kwargs.get(MICROBATCH):
        case int(number):
            return number
        case list() | tuple() as numbers:
            return [int(number) for number in numbers if isinstance(number, int)]
    return None
