"""An index that eager mode refuses is refused by the compiled model, too: of each integer input, one above the largest.

A rank that holds a part of a vocabulary, padded to whole chunks, could take it for one of its own. The call after the
refused one is a right one: it must give what it gave before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ...diagnostics import StrettoError
from ...runtime.checks.report import CheckRow, Verdict, raised_row
from ..check.users_call import UsersCall, tensors_of
from ..model.compiled_module import random_state, set_random_state
from .arguments import Arguments, fresh, takes

_INDICES = (torch.int64, torch.int32)


def rows_of_invalid_indices(
    compiled: nn.Module, model: nn.Module, arguments: Arguments, *, trains: bool
) -> list[CheckRow]:
    """A row for each integer input with which the compiled model computes, and the `model` in eager mode does not."""
    rows = []
    for name, limit, invalid in _invalid(model, arguments):
        what = f"of {name} with the index {limit}"
        before = _outputs(compiled, arguments, trains=trains)
        state = random_state(compiled)  # a refused call may have drawn
        try:
            with torch.set_grad_enabled(trains):
                compiled(**fresh(invalid))
        except StrettoError:
            set_random_state(compiled, state)
            wrong = _after(compiled, arguments, what, before, trains=trains)
            rows += wrong
            if wrong:  # it may take no further calls
                return rows
            continue
        note = "eager mode refuses this index, and the program computes with it"
        rows.append(CheckRow("output", what, math.inf, Verdict.DIFFERS, note))
    return rows


def _after(
    compiled: nn.Module, arguments: Arguments, refused: str, before: Sequence[Tensor], *, trains: bool
) -> list[CheckRow]:
    """The row of a right call after a refused one, where it raises, or returns other values than `before`."""
    name = f"of the call after the one {refused}"
    try:
        outputs = _outputs(compiled, arguments, trains=trains)
    except Exception as error:  # any: what is under check may be wrong in any way
        return [raised_row(name, error)]
    if all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, outputs, strict=True)):
        return []
    note = "it returns other values than the same call before it"
    return [CheckRow("output", name, math.inf, Verdict.DIFFERS, note)]


def _outputs(compiled: nn.Module, arguments: Arguments, *, trains: bool) -> list[Tensor]:
    """What a call returns, with buffers and random numbers as they are now."""
    kept = [(buffer, buffer.clone()) for buffer in compiled.buffers()]
    state = random_state(compiled)
    try:
        with torch.set_grad_enabled(trains):
            return tensors_of(compiled(**fresh(arguments)))
    finally:
        set_random_state(compiled, state)
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def _invalid(model: nn.Module, arguments: Arguments) -> Iterator[tuple[str, int, Arguments]]:
    """For each integer input: its name, the least index that eager mode refuses, and the arguments with it; also -1.

    Only sizes of the model's tables are tried; an input for which none of them is the limit is left out.
    """
    sizes, probe = _table_sizes(model), copy.deepcopy(model)
    for name, tensor in UsersCall(arguments, False).tensors.items():
        if name not in arguments or tensor.dtype not in _INDICES or not tensor.numel():
            continue
        for size in (size for size in sizes if size > int(tensor.max())):
            inside, outside = ({**arguments, name: _with_last(tensor, index)} for index in (size - 1, size))
            if not takes(probe, outside) and takes(probe, inside):
                yield name, size, outside
                below = {**arguments, name: _with_last(tensor, -1)}
                if not takes(probe, below):
                    yield name, -1, below
                break


def _table_sizes(model: nn.Module) -> list[int]:
    """The extents that an index may have to stay below: those of embeddings, and the outputs of the last layer."""
    modules = list(model.modules())
    embeddings = {module.num_embeddings for module in modules if isinstance(module, nn.Embedding)}
    return sorted(embeddings | {module.out_features for module in modules[-1:] if isinstance(module, nn.Linear)})


def _with_last(tensor: Tensor, index: int) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] = index
    return changed
