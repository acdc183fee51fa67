"""The operation that is lowered wrongly: the first instruction of a program that its module does not have.

`driver/check/lowered_code.py` compares the two texts; `driver/check/lowering_check.py` compares what they compute.
"""

from __future__ import annotations

from ...backends.interpreter import ProgramRecords
from ...ir.interpreter.code import decode
from ...ir.module import Module
from ...runtime.program.records import Function
from ..check.lowered_code import Keys, instruction_text
from .faulty_op import FaultyOp
from .op_places import Places


def find_lowered_op(module: Module, program: ProgramRecords) -> FaultyOp | None:
    """The operation whose instruction differs; None where every instruction is one of the module's."""
    places = Places(module)
    for name, body in decode(module).bodies.items():
        function = program.functions.get(name)
        if function is None:
            continue
        keys = Keys()
        of_steps, of_code = keys.of_body(body), keys.of_function(function)
        lacking = next((i for i, key in enumerate(of_code) if key not in of_steps.values()), None)
        dropped = next((i for i, key in of_steps.items() if key not in of_code), None)
        if lacking is not None or dropped is not None:
            place = places.place(name, dropped) if dropped is not None else places.place_of_return(name)
            return FaultyOp(place, why=(_why(name, function, lacking),))
        swapped = keys.first_other_result(body, function)
        if swapped is not None:
            return FaultyOp(places.place(name, swapped), why=(f'a result of "{name}" is another value of it',))
    return None


def _why(name: str, function: Function, index: int | None) -> str:
    return "the program has no instruction for it" if index is None else instruction_text(name, function, index)
