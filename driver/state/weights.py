"""Save and load a model's weights as safetensors, sharded or not: each process reads only its own part."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...diagnostics import StrettoError
from ...runtime.processes.parameters import local_window
from ...runtime.processes.world import call
from .state_tensors import (
    StateTensor,
    full_tensor,
    is_writer,
    names_text,
    state_tensors,
    transient_buffers,
    write_alone,
)
from .weight_files import WeightFiles, window_of, write_weights


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a model's global parameters and persistent buffers to one safetensors file, under the model's names.

    A tied tensor is written once, under its first name, as `safetensors.torch.save_model` does. `load_weights` and
    `safetensors.torch.load_model` read the file into any copy of the model. Where ranks are processes, all of them must
    call this; rank 0 writes. Raises StrettoError E0508 where the file cannot be written.
    """
    with call("save_weights"):
        tensors: dict[str, Tensor] = {}
        for tensor in state_tensors(model):
            global_tensor = full_tensor(tensor.tensor)
            if is_writer():
                tensors[tensor.name] = global_tensor
        write_alone(lambda: write_weights(Path(path), tensors))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a model in place from a safetensors file, or a folder of them; for a DTensor only its local part is read.

    Parameters on the meta device get memory first. Values are converted to the model's dtypes. On an error nothing is
    changed: StrettoError E0612 for a file that cannot be read, E0613 where names or shapes differ from the model's,
    E0614 for buffers on the meta device that no file holds.
    """
    _refuse_transient_on_meta(model)
    with WeightFiles(path) as files, torch.no_grad():
        pairs = _matched(state_tensors(model), files)
        materialize(model)
        by_name = {name: tensor.tensor for tensor in state_tensors(model) for name in tensor.names}
        for tensor, name in pairs:
            _fill(by_name[tensor.name], name, files)


def materialize(model: nn.Module) -> None:
    """Allocate CPU memory for the parameters and buffers on the meta device, without values; tied ones stay tied."""
    allocated: dict[int, Tensor] = {}
    for module in model.modules():
        for members in (module._parameters, module._buffers):
            for name, tensor in members.items():
                if tensor is not None and tensor.is_meta:
                    members[name] = allocated.setdefault(id(tensor), _with_memory(tensor))  # type: ignore[assignment]


def _with_memory(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="cpu")
    if not isinstance(tensor, nn.Parameter):
        return empty
    parameter = nn.Parameter(empty, tensor.requires_grad)
    parameter.__dict__.update(tensor.__dict__)
    return parameter


def _fill(tensor: Tensor, name: str, files: WeightFiles) -> None:
    """Read this process's part of one tensor."""
    if isinstance(tensor, DTensor):
        shape, offsets = local_window(tensor)
        local = tensor.to_local()
        if local.numel():
            local.copy_(files.read(name, window_of(shape, offsets)))
    else:
        tensor.copy_(files.read(name, ()))


def _matched(tensors: Sequence[StateTensor], files: WeightFiles) -> list[tuple[StateTensor, str]]:
    """Each tensor of the model with its name in the files; E0613 unless names and shapes agree."""
    known = frozenset(files.names)
    pairs = [(tensor, next((name for name in tensor.names if name in known), "")) for tensor in tensors]
    missing = [tensor.name for tensor, name in pairs if not name]
    named = {name for tensor in tensors for name in tensor.names}
    extra = [name for name in files.names if name not in named]
    if missing or extra:
        raise _other_names(files.path, missing, extra)
    for tensor, name in pairs:
        if files.shape(name) != tensor.shape:
            raise StrettoError(
                "E0613",
                f"'{files.path}' holds \"{name}\" of shape {list(files.shape(name))}",
                expected=f"{list(tensor.shape)}, as the model has it",
                help="load the weights of a model with the same config",
            )
    return pairs


def _other_names(path: Path, missing: Sequence[str], extra: Sequence[str]) -> StrettoError:
    notes = []
    if missing:
        notes.append((f"the file lacks {names_text(missing)}", None))
    if extra:
        notes.append((f"the model lacks {names_text(extra)}", None))
    near = difflib.get_close_matches(missing[0], extra, 1) if missing else []
    return StrettoError(
        "E0613",
        f"'{path}' holds the weights of another model",
        notes=tuple(notes),
        help=f'rename them: "{near[0]}" is nearest to "{missing[0]}"'
        if near
        else "load weights that this model has saved",
    )


def _refuse_transient_on_meta(model: nn.Module) -> None:
    lost = [name for name, tensor in transient_buffers(model).items() if tensor.is_meta]
    if lost:
        raise StrettoError(
            "E0614",
            f"{names_text(lost)} {'is' if len(lost) == 1 else 'are'} on the meta device, and no file holds the values",
            expected="real values for buffers outside the state dict",
            help="build the model inside `with stretto.meta_parameters():`, which does not move buffers",
        )
