"""A model's weights out to safetensors and in again, whatever a plan has cut: each process reads its own part alone."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...diagnostics import StrettoError
from ...runtime.processes.parameters import local_window
from .held_tensors import HeldTensor, few, held_tensors, is_writer, meet, transient_buffers, whole
from .weight_files import WeightFiles, window_of, write_weights


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a model's parameters and persistent buffers, whole, to one safetensors file, under the model's names.

    A tied tensor is written once, under its first name, as `safetensors.torch.save_model` does; `load_weights` and
    `safetensors.torch.load_model` read it into any copy of the model. Where ranks are processes, all of them must call
    it; rank 0 writes. Raises StrettoError E0508 where the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for each in held_tensors(model):
        found = whole(each.tensor)
        if is_writer():
            tensors[each.name] = found
    if is_writer():
        write_weights(Path(path), tensors)
    meet()


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a model from a safetensors file, or a folder of them, in place; a DTensor reads its own part and no more.

    Parameters on the meta device get memory first. Values are converted to the dtypes that the model has. Nothing is
    changed where an error is raised: StrettoError E0612 for what cannot be read, E0613 where names or shapes are not
    the model's, E0614 for buffers on the meta device, which no file holds.
    """
    _refuse_transient_on_meta(model)
    with WeightFiles(path) as files, torch.no_grad():
        pairs = _matched(held_tensors(model), files)
        materialize(model)
        now = {name: each.tensor for each in held_tensors(model) for name in each.names}
        for each, name in pairs:
            _fill(now[each.name], name, files)


def materialize(model: nn.Module) -> None:
    """Give parameters and buffers that are on the meta device memory on the CPU, not yet filled; ties stay."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor.is_meta:
                    held[name] = made.setdefault(id(tensor), _with_memory(tensor))  # type: ignore[assignment]


def _with_memory(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="cpu")
    if not isinstance(tensor, nn.Parameter):
        return empty
    made = nn.Parameter(empty, tensor.requires_grad)
    made.__dict__.update(tensor.__dict__)
    return made


def _fill(tensor: Tensor, name: str, files: WeightFiles) -> None:
    """Read what this process holds of one tensor."""
    if isinstance(tensor, DTensor):
        shape, offsets = local_window(tensor)
        local = tensor.to_local()
        if local.numel():
            local.copy_(files.read(name, window_of(shape, offsets)))
    else:
        tensor.copy_(files.read(name, ()))


def _matched(held: Sequence[HeldTensor], files: WeightFiles) -> list[tuple[HeldTensor, str]]:
    """Each tensor of the model with the name that it has in the files; E0613 unless they fit."""
    known = frozenset(files.names)
    pairs = [(each, next((name for name in each.names if name in known), "")) for each in held]
    missing = [each.name for each, name in pairs if not name]
    named = {name for each in held for name in each.names}
    left = [name for name in files.names if name not in named]
    if missing or left:
        raise _other_names(files.path, missing, left)
    for each, name in pairs:
        if files.shape(name) != each.shape:
            raise StrettoError(
                "E0613",
                f"'{files.path}' holds \"{name}\" of shape {list(files.shape(name))}",
                expected=f"{list(each.shape)}, as the model has it",
                help="load the weights of a model with the same config",
            )
    return pairs


def _other_names(path: Path, missing: Sequence[str], left: Sequence[str]) -> StrettoError:
    notes = []
    if missing:
        notes.append((f"the file lacks {few(missing)}", None))
    if left:
        notes.append((f"the model lacks {few(left)}", None))
    near = difflib.get_close_matches(missing[0], left, 1) if missing else []
    return StrettoError(
        "E0613",
        f"'{path}' holds the weights of another model",
        notes=tuple(notes),
        help=f'rename them: "{near[0]}" is nearest to "{missing[0]}"' if near else "load what this model has saved",
    )


def _refuse_transient_on_meta(model: nn.Module) -> None:
    lost = [name for name, tensor in transient_buffers(model).items() if tensor.is_meta]
    if lost:
        raise StrettoError(
            "E0614",
            f"{few(lost)} {'is' if len(lost) == 1 else 'are'} on the meta device, and no file holds the values",
            expected="buffers that are no part of the state dict to have been computed when the model was built",
            help="build the model inside `with stretto.meta_parameters():`, which leaves buffers where they are",
        )
