"""Validation of the single-device reference, with the rigour of `validate_functions.py`: `reference.json` is data too.

It runs eagerly under autograd, so that it may also hold ops that write to an argument. They reach copies of the buffers
and values that it computed; that they reach nothing else is checked as they run (`reference.py`).
"""

from __future__ import annotations

import torch

from .arguments import DTYPES, Slot
from .limits import MOST_SLOTS
from .ops import torch_op
from .records import Instruction, Reference, Stated
from .reference import AUTOCAST_BEGIN, AUTOCAST_END, RANDOM
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
    live, open_regions = set(range(len(reference.inputs))), 0
    for index, instruction in enumerate(reference.code):
        path = f"reference.json.code[{index}]"
        check_slots(instruction, live, count, path)
        open_regions += {AUTOCAST_BEGIN: 1, AUTOCAST_END: -1}.get(instruction.op, 0)
        require(open_regions >= 0, f"{path}: an autocast region ends that did not begin")
        _op(instruction, path)
    for index, output in enumerate(reference.outputs):
        path = f"reference.json.outputs[{index}]"
        require(output.kind in _OUTPUT_KINDS, f"{path}.kind: '{output.kind}' is no kind of output")
        require(output.slot in live, f"{path}.slot: slot {output.slot} is not set at the end")


def _stated(stated: Stated, reference: Reference) -> None:
    path = "reference.json.checks"
    require(stated.mode in ("train", "infer"), f"{path}.mode: '{stated.mode}' is neither train nor infer")
    require(stated.dtype in DTYPES, f"{path}.dtype: '{stated.dtype}' is not a dtype")
    require(DTYPES[stated.dtype].is_floating_point, f"{path}.dtype: '{stated.dtype}' is not a floating dtype")
    outputs = {output.index for output in reference.outputs if output.kind == "output"}
    require(outputs.issuperset(stated.differentiated), f"{path}.differentiated: there is no such output")
    inputs = {argument.name for argument in reference.inputs if argument.kind == "input"}
    require(inputs.issuperset(stated.inputs_with_gradients), f"{path}.inputs_with_gradients: there is no such input")


def _op(instruction: Instruction, path: str) -> None:
    match instruction.op:
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
