"""Validation of the single-device reference, with the rigour of `validate_functions.py`: `reference.json` is data too.

It runs eagerly under autograd, so that it may also hold ops that write to an argument. They reach copies of the buffers
and values that it computed; that they reach nothing else is checked as they run (`reference.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .arguments import DTYPES, Slot
from .limits import MOST_SLOTS
from .ops import torch_op
from .records import Instruction
from .reference import AUTOCAST_BEGIN, AUTOCAST_END, RANDOM
from .reference_functions import CUSTOM_FUNCTION
from .reference_records import CustomFunction, FunctionBackward, Reference, Stated
from .validate_calls import check_call, check_slots, require

_INPUT_KINDS = frozenset({"parameter", "buffer", "constant", "input", "random"})
_OUTPUT_KINDS = frozenset({"output", "buffer"})


def validate_reference(reference: Reference) -> None:
    """Raise Malformed for the first thing that is wrong, or ProgramError E0305 for an op that may not stand in it."""
    count = reference.slots
    require(count <= MOST_SLOTS, f"reference.json.slots: {count:.3e}, expected at most {MOST_SLOTS}")
    require(len(reference.inputs) <= count, f"reference.json.slots: {count}, but {len(reference.inputs)} inputs")
    for index, argument in enumerate(reference.inputs):
        path = f"reference.json.inputs[{index}]"
        require(argument.kind in _INPUT_KINDS, f"{path}.kind: '{argument.kind}' is no kind of input")
        require(argument.dtype in DTYPES, f"{path}.dtype: '{argument.dtype}' is not a dtype")
        require(all(extent >= 0 for extent in argument.shape), f"{path}.shape: a negative extent")
    if reference.stated is not None:
        _stated(reference.stated, reference)
    for index, function in enumerate(reference.functions):
        _function(function, f"reference.json.functions[{index}]")
    live = set(range(len(reference.inputs)))
    _code(reference.code, live, count, "reference.json.code", reference.functions)
    for index, output in enumerate(reference.outputs):
        path = f"reference.json.outputs[{index}]"
        require(output.kind in _OUTPUT_KINDS, f"{path}.kind: '{output.kind}' is no kind of output")
        require(output.slot in live, f"{path}.slot: slot {output.slot} is not set at the end")


def _stated(stated: Stated, reference: Reference) -> None:
    path = "reference.json.stated"
    require(stated.mode in ("train", "infer"), f"{path}.mode: '{stated.mode}' is neither train nor infer")
    require(stated.dtype in DTYPES, f"{path}.dtype: '{stated.dtype}' is not a dtype")
    require(DTYPES[stated.dtype].is_floating_point, f"{path}.dtype: '{stated.dtype}' is not a floating dtype")
    outputs = {output.index for output in reference.outputs if output.kind == "output"}
    require(outputs.issuperset(stated.differentiated), f"{path}.differentiated: there is no such output")
    inputs = {argument.name for argument in reference.inputs if argument.kind == "input"}
    require(inputs.issuperset(stated.inputs_with_gradients), f"{path}.inputs_with_gradients: there is no such input")


def _code(
    code: Sequence[Instruction], live: set[int], count: int, path: str, functions: Sequence[CustomFunction]
) -> None:
    """Check instructions that may call `functions`; updates the slots that are `live`."""
    open_regions = 0
    for index, instruction in enumerate(code):
        at = f"{path}[{index}]"
        check_slots(instruction, live, count, at)
        open_regions += {AUTOCAST_BEGIN: 1, AUTOCAST_END: -1}.get(instruction.op, 0)
        require(open_regions >= 0, f"{at}: an autocast region ends that did not begin")
        _op(instruction, at, functions)


def _function(function: CustomFunction, path: str) -> None:
    """Check a custom autograd function. It calls no other."""
    count, outputs = function.slots, len(function.outputs)
    require(count <= MOST_SLOTS, f"{path}.slots: {count:.3e}, expected at most {MOST_SLOTS}")
    require(0 <= function.inputs <= function.operands <= count, f"{path}.inputs: not among the operands and slots")
    live = set(range(function.operands))
    _code(function.code, live, count, f"{path}.code", ())
    require(live.issuperset(function.outputs), f"{path}.outputs: a slot is not set at the end of the forward")
    require(all(0 <= index < outputs for index in function.differentiable), f"{path}.differentiable: no such output")
    for index, backward in enumerate(function.backwards):
        _backward(function, backward, live, f"{path}.backwards[{index}]")


def _backward(function: CustomFunction, backward: FunctionBackward, after_forward: set[int], path: str) -> None:
    given = [slot for slot in backward.tangents if slot is not None]
    require(len(backward.tangents) == len(function.differentiable), f"{path}.tangents: not one for each output")
    fresh = all(0 <= slot < function.slots and slot not in after_forward for slot in given)
    require(fresh and len(set(given)) == len(given), f"{path}.tangents: no such slot, or one that is set already")
    live = after_forward | set(given)
    _code(backward.code, live, function.slots, f"{path}.code", ())
    require(len(backward.gradients) == function.inputs, f"{path}.gradients: not one for each input")
    gradients = {slot for slot in backward.gradients if slot is not None}
    require(live.issuperset(gradients), f"{path}.gradients: a slot is not set at the end of the backward")


def _call(instruction: Instruction, path: str, functions: Sequence[CustomFunction]) -> None:
    """Check the call of a custom autograd function."""
    index, operands = (instruction.args[0], instruction.args[1:]) if instruction.args else (None, ())
    known = type(index) is int and 0 <= index < len(functions)
    require(known, f"{path}.args: {index!r:.60} is no custom function that may be called here")
    assert isinstance(index, int)
    function = functions[index]
    slots = all(isinstance(operand, Slot) for operand in operands) and not instruction.kwargs
    require(slots and len(operands) == function.operands, f"{path}.args: {function.operands} values are its operands")
    require(len(instruction.out) == len(function.outputs), f"{path}.out: it returns {len(function.outputs)} values")


def _op(instruction: Instruction, path: str, functions: Sequence[CustomFunction]) -> None:
    match instruction.op:
        case op if op == CUSTOM_FUNCTION:
            _call(instruction, path, functions)
        case op if op == RANDOM:
            _random(instruction, path)
        case op if op == AUTOCAST_BEGIN:
            match instruction.args:
                case (torch.dtype(), bool()):
                    pass
                case _:
                    require(False, f"{path}.args: a region takes a dtype and whether autocast is on")
        case op if op == AUTOCAST_END:
            require(not instruction.args, f"{path}.args: the end of a region takes nothing")
        case op:
            check_call(torch_op(op, path), instruction, path)


def _random(instruction: Instruction, path: str) -> None:
    require(not instruction.kwargs, f"{path}.kwargs: {RANDOM} takes none")
    require(len(instruction.writes()) == 1, f"{path}.out: {RANDOM} returns one value")
    match instruction.args:
        case (Slot(), Slot(), _, int(), None | int()):
            return
        case (Slot(), None, [*size], int(), None | int()):
            valid = all(type(extent) is int and extent >= 0 for extent in size)
            require(valid, f"{path}.args: {size!r:.60} is not a shape")
        case _:
            require(False, f"{path}.args: not those of a random op: {instruction.args!r:.90}")
