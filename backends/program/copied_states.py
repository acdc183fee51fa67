"""The states that a program does not write in place, and why, for remarks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ...runtime.program.entries import MAIN
from ...runtime.program.program import Program
from ...runtime.program.records import Function, Instruction

_GATHER = "comm.all_gather_start"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def copied_states(program: Program) -> list[str]:
    """One text for states of a kind, such as those of all layers, whose new values have memory of their own.

    In training each state is copied, since a backward may read its old value; of those nothing is said.
    """
    if program.manifest.mode != "infer" or program.pipeline is not None:
        return []
    return [*dict.fromkeys(_texts(program))]


def _texts(program: Program) -> Iterator[str]:
    slots = {state.name: state.slot for state in program.of_kind("state")}
    for output in program.results_of_kind("state"):
        made = _made_by(program.functions, MAIN, output.slot)
        if made == slots.get(output.name):
            continue
        name = _NUMBER.sub("*", output.name)
        if isinstance(made, Instruction) and made.op == _GATHER:
            axes, dim = made.kwargs.get("axes"), made.kwargs.get("dim")
            over = ", ".join(map(str, axes)) if isinstance(axes, list | tuple) else str(axes)
            yield (
                f'state "{name}" is gathered at each step, since its new value is computed in parts; a plan with: '
                f'shard buffers "{name}" dim {dim} over {over}'
            )
        else:
            yield (
                f'state "{name}" is copied at each step: an operation reads its old value after the new one is made, '
                "or the operation that makes it has no form in place"
            )


def _made_by(functions: Mapping[str, Function], name: str, slot: int) -> int | Instruction:
    """The instruction that makes the memory of a slot; the slot of an argument, where it is the argument's."""
    function = functions[name]
    producers = {out: each for each in function.code for out in each.writes()}
    while (producer := producers.get(slot)) is not None:
        if producer.into is not None:
            slot = producer.into
        elif producer.op == "comm.wait":
            slot = producer.reads()[0]
            if (start := producers.get(slot)) is not None and start.op != "call":
                return start
        elif producer.op == "call":
            callee = functions[str(producer.args[0])]
            made = _made_by(functions, str(producer.args[0]), callee.results[producer.out.index(slot)])
            if isinstance(made, Instruction):
                return made
            slot = producer.reads()[callee.arguments.index(made)]
        else:
            return producer
    return slot
