"""The instructions of a program beside the operations of its module: names, constants and data flow, not values.

A constant may be wrong where no value shows it: the fill of padding below a maximum that is above it in every run. Both
are keyed by their data flow, function by function: an operation by its name, constants and the keys of its operands.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from ...backends.interpreter import ProgramRecords
from ...ir.dialects.schemas import definitions
from ...ir.interpreter.code import CALL, UNPACK, Body, Ref, Step, decode
from ...ir.module import Module
from ...ir.pipelined_module import MICROBATCH
from ...runtime.program.arguments import Slot
from ...runtime.program.records import Function, Instruction

_PROGRAM_NAMES = {
    "comm.shard": "rank.shard", "comm.offset": "rank.offset", "comm.mask": "rank.mask", "comm.random": "rank.random",
    CALL: "call",
}  # fmt: skip
"""By the name of an operation: that of its instruction."""
_OF_PROGRAM = ("microbatch_index", "made_by")
"""Keywords that a program adds."""


def other_constants(module: Module, program: ProgramRecords) -> str:
    """A line on the first instruction that has an operation's operands and other constants; empty if there is none."""
    for name, body in decode(module).bodies.items():
        function = program.functions.get(name)
        if function is None:
            continue
        keys = Keys()
        of_steps, of_code = set(keys.of_body(body).values()), keys.of_function(function)
        operations = {keys.without_constants(number): number for number in of_steps}
        for index, number in enumerate(of_code):
            if number in of_steps:
                continue
            if keys.without_constants(number) in operations:
                return f"{instruction_text(name, function, index)}, which the operation of the module does not have"
            break  # an operation of the program's own: what depends on it has other operands
    return ""


def other_places(module: Module, program: ProgramRecords) -> str:
    """A line on the first instruction that is at another line of the user's file than its operation; or empty."""
    for name, body in decode(module).bodies.items():
        function = program.functions.get(name)
        if function is None:
            continue
        keys, places = Keys(), dict[int, set[tuple[str, int]]]()
        for index, number in keys.of_body(body).items():
            origin = body.steps[index].origin
            places.setdefault(number, set()).add((origin.file, origin.line))
        for index, number in enumerate(keys.of_function(function)):
            loc = function.code[index].loc
            place = None if loc is None else program.locations[loc]
            own = places.get(number)
            if place is not None and own and (place.file, place.line) not in own:
                file, line = min(own)
                text = instruction_text(name, function, index)
                return f"{text} at {place.file}:{place.line}; the operation of the module is at {file}:{line}"
    return ""


def instruction_text(name: str, function: Function, index: int) -> str:
    """An instruction with its constants."""
    instruction = function.code[index]
    listed = [str(value) for value in instruction.args if not isinstance(value, Slot | list)]
    constants = ", ".join([*listed, *(f"{key} = {value}" for key, value in instruction.kwargs.items())])
    return f'instruction {index} of "{name}" is "{instruction.op}"' + (f" with {constants}" if constants else "")


class Keys:
    """Numbers that stand for equal keys of one function of a module and of its program."""

    def __init__(self) -> None:
        self._keys: list[tuple[str, Hashable]] = []
        self._numbers: dict[Hashable, int] = {}
        self._steps: dict[Hashable, int] = {}
        self._of_module: dict[int, Hashable] = {}
        self._of_program: dict[int, Hashable] = {}

    def first_other_result(self, body: Body, function: Function) -> int | None:
        """The step of a result of the module in whose place the program returns another; None where all agree."""
        for slot, other in zip(body.results, function.results, strict=False):
            wanted = self._of_module.get(slot)
            if isinstance(wanted, tuple) and wanted != self._of_program.get(other):
                return self._steps.get(wanted[0])
        return None

    def of_body(self, body: Body) -> dict[int, int]:
        """By the number of a step of a function of the module: its key."""
        values = self._of_module
        values.update({slot: ("argument", i) for i, slot in enumerate(body.arguments)})
        keys: dict[int, int] = {}
        for index, step in enumerate(body.steps):
            if step.name == UNPACK:
                key = values[step.args[0].slot]
                assert isinstance(key, tuple)
                values.update({slot: (key[0], position) for position, slot in enumerate(step.out)})
                continue
            keys[index] = self._number((_PROGRAM_NAMES.get(step.name, step.name), _arguments_of(step, values)))
            values.update({slot: (keys[index], position) for position, slot in enumerate(step.out)})
            self._steps.setdefault(keys[index], index)
        return keys

    def of_function(self, function: Function) -> list[int]:
        """The key of each instruction of a function of the program."""
        values = self._of_program
        values.update({slot: ("argument", i) for i, slot in enumerate(function.arguments)})
        keys: list[int] = []
        for instruction in function.code:
            keys.append(self._number((instruction.op, _operands_of(instruction, values))))
            values.update({slot: (keys[-1], i) for i, slot in enumerate(instruction.out) if slot is not None})
        return keys

    def without_constants(self, number: int) -> Hashable:
        """The name of an operation and its operands."""
        name, arguments = self._keys[number - 1]
        return name, tuple(_operands(arguments))

    def _number(self, key: tuple[str, Hashable]) -> int:
        number = self._numbers.setdefault(key, len(self._numbers) + 1)
        if number > len(self._keys):
            self._keys.append(key)
        return number


def _operands(arguments: Hashable) -> Iterator[Hashable]:
    """The keys of tensors in arguments: constants are text."""
    if isinstance(arguments, tuple) and len(arguments) == 2 and isinstance(arguments[1], int):
        yield arguments
    elif isinstance(arguments, tuple):
        for each in arguments:
            yield from _operands(each)


def _arguments_of(step: Step, values: Mapping[int, Hashable]) -> Hashable:
    """The arguments of an operation, as its instruction has them: constants of communication by name."""
    if step.name == CALL:
        return step.callee, _filled(list(step.args), values), _filled(step.microbatch, values)
    if not step.name.startswith("comm."):
        return _filled(list(step.args), values), _named(step.kwargs, values)
    names = [argument.name for argument in definitions()[step.name].arguments]
    arguments = dict(zip(names, step.args, strict=False))
    tensors = [value for value in arguments.values() if isinstance(value, Ref)]
    return _filled(tensors, values), _named({k: v for k, v in arguments.items() if not isinstance(v, Ref)}, values)


def _operands_of(instruction: Instruction, values: Mapping[int, Hashable]) -> Hashable:
    """The arguments of an instruction."""
    kwargs = {key: value for key, value in instruction.kwargs.items() if key not in _OF_PROGRAM}
    if instruction.op == "call":
        callee, operands = instruction.args
        return callee, _filled(operands, values), _filled(kwargs.get(MICROBATCH), values)
    return _filled(list(instruction.args), values), _named(kwargs, values)


def _named(arguments: Mapping[str, Any], values: Mapping[int, Hashable]) -> Hashable:
    return tuple(sorted((key, repr(_filled(value, values))) for key, value in arguments.items() if value is not None))


def _filled(argument: Any, values: Mapping[int, Hashable]) -> Hashable:
    if isinstance(argument, Ref):
        return values[argument.slot]
    if isinstance(argument, Slot):
        return values.get(argument.index, ("never set", argument.index))
    if isinstance(argument, list | tuple):
        return tuple(_filled(item, values) for item in argument)
    return repr(argument)
