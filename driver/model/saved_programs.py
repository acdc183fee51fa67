"""Programs of a compiled model as the entries of one folder, with the model's present values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...frontend.held_tensors.objects import held_object
from ...runtime.named_entries.program_set import ProgramSet
from ...runtime.named_entries.shared_tensors import SHARED
from ...runtime.processes.world import call
from ...runtime.program.program import Program
from ..state.state_tensors import full_tensor, is_writer, write_alone


def save_programs(
    folder: str | Path,
    programs: Mapping[str, Program],
    model: nn.Module,
    objects: Mapping[str, Any] | None = None,
) -> None:
    """Write programs of a model (`program_of`) as entries of a folder, for `load_program` and the commands.

    The folder has the model's present parameters, buffers and states, once. `objects` are arguments that hold states,
    such as a cache, by the argument's name. Where ranks are processes, all of them must call this; rank 0 writes.

    Raises ProgramError E0307, E0508, E0316 where programs place something they share otherwise, and E0317.
    """
    checked = ProgramSet.of(programs)
    with call("save_programs"):
        wanted = {each.name for program in programs.values() for each in program.inputs if each.kind in SHARED}
        values = {name: full_tensor(each) for name, each in _named(model, objects or {}).items() if name in wanted}
        if is_writer():
            checked = ProgramSet.of({entry: _with_values(program, values) for entry, program in programs.items()})
        write_alone(lambda: checked.save(folder))


def _named(model: nn.Module, objects: Mapping[str, Any]) -> dict[str, Tensor]:
    """Parameters, buffers and the tensors of objects, by all their names."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    own = {id(each) for each in tensors.values()}
    for name, value in objects.items():
        held = held_object(name, value, lambda: own)
        tensors |= {} if held is None else dict(held.tensors)
    return tensors


def _with_values(program: Program, values: Mapping[str, Tensor]) -> Program:
    own = {each.name: values[each.name] for each in program.inputs if each.kind in SHARED and each.name in values}
    return replace(program, initial={**program.weights, **own})
