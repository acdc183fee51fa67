"""Checkpoints of a model and its optimizer, in the format of `torch.distributed.checkpoint`, written atomically.

A checkpoint saved under one plan loads under any other plan, on any number of ranks, and in plain PyTorch: names are
the model's own, and each rank reads its own parts. A checkpoint is torch's folder plus `stretto.json`, for values that
are no tensors. It is written to a temporary folder and then renamed.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load

from ...diagnostics import StrettoError
from ...diagnostics.bounded_files import read_file
from ...runtime.philox import RngState
from ...runtime.processes.parameters import has_local_part
from ...runtime.processes.world import call, join, watched
from ..model.compiled_module import compiled_module, is_compiled, random_state, set_random_state
from ..model.distribution import processes
from ..state.state_tensors import names_text
from .optimizer_state import empty_state, fill_optimizer, groups_in_order, state_by_name, state_names
from .reader import METADATA, reader_of
from .writing import one_process_is_meant, write_folder

EXTRA_FILE = "stretto.json"
_FORMAT = 1
_SHOWN = 5
_UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    ValueError,
    TypeError,
    OSError,
)
"""What torch raises for a damaged metadata file."""
_READING = "read"
"""The last of torch's steps when it loads; the earlier ones read only the metadata."""

Json = Any
"""A value that JSON can hold: a number, a string, None, a list or dict of them."""


@call("save_checkpoint")
def save_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **extra: Json
) -> None:
    """Write a checkpoint folder; an earlier one at this path stays until the new one is complete.

    All processes must call it. `extra` are JSON values, such as `step=3` or `scheduler=scheduler.state_dict()`;
    `load_checkpoint` returns them. A compiled model's RNG state is saved too. Raises StrettoError E0508 where the
    folder cannot be written or is no checkpoint, E0615 for a value that JSON cannot hold.
    """
    path = Path(os.path.abspath(path))
    text = _extra_text(model, extra)
    _join()
    if path.exists() and not (path / METADATA).exists():
        raise StrettoError("E0508", f"'{path}' exists and is no checkpoint", help="choose another name, or remove it")
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    if optimizer is not None:
        state["optimizer"] = state_by_name(model, optimizer)
    write_folder(path, state, {EXTRA_FILE: text})


@call("load_checkpoint")
def load_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, trusted: bool = False
) -> dict[str, Json]:
    """Fill the model, and the optimizer if given, from a checkpoint; returns the `extra` values saved with it.

    Each process reads its own parts, whatever plan or number of ranks wrote the checkpoint. Checkpoints that torch
    wrote are read too if they hold {"model": ..., "optimizer": ...}. Raises StrettoError E0610 for a folder that is no
    checkpoint or an incomplete one, E0611 where it is of another model or optimizer; then nothing is changed.

    A checkpoint is read as data: nothing in it is unpickled, E0619 where it holds more. `trusted=True` says that you
    trust its author as you trust a program: it is read by torch's own reader, which runs the code that it names.
    """
    path = Path(path)
    metadata = _metadata(path, trusted=trusted)
    _join()
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    if optimizer is not None:
        state["optimizer"] = _saved_part(metadata, empty_state(model, optimizer))
    _check_fits(path, metadata, state, state_names(list(metadata.state_dict_metadata), _elsewhere(model)))
    saved_extra = _read_extra(path)
    if optimizer is not None:
        groups = _load(
            path,
            {"optimizer": {"param_groups": copy.deepcopy(state["optimizer"].pop("param_groups"))}},
            trusted=trusted,
        )
        ordered = groups_in_order(model, optimizer, groups["optimizer"]["param_groups"])
    state = _load(path, {part: values for part, values in state.items() if values}, trusted=trusted)
    set_model_state_dict(model, state["model"])
    if optimizer is not None:
        fill_optimizer(model, optimizer, state.get("optimizer", {}).get("state", {}), ordered)
    if is_compiled(model):
        compiled_module(model).discard()
    if "random" in saved_extra and is_compiled(model):
        set_random_state(model, RngState(**saved_extra["random"]))
    return dict(saved_extra["extra"])


def _join() -> None:
    """Connect the processes: without a call of the model they may not be connected yet."""
    if processes() > 1:
        join()


def _saved_part(metadata: Metadata, empty: dict[str, Any]) -> dict[str, Any]:
    """The part of an optimizer's state that the checkpoint holds: parameters without saved state are left out."""
    saved_names = state_names(list(metadata.state_dict_metadata), list(empty["state"]))
    state = {name: values for name, values in empty["state"].items() if name in saved_names}
    return {**({"state": state} if state else {}), "param_groups": empty["param_groups"]}


def _load(path: Path, state: dict[str, Any], *, trusted: bool) -> dict[str, Any]:
    """`state` with tensors filled and other values replaced; E0611 where one is missing, E0610 for a damaged file."""
    reader, planner = reader_of(path, trusted=trusted)
    with one_process_is_meant(), watched("reading the checkpoint"):
        try:
            load(state, storage_reader=reader, planner=planner, no_dist=not dist.is_initialized())
        except CheckpointException as error:
            for failure, _ in error.failures.values():
                if isinstance(failure, StrettoError):
                    raise failure from None
            causes = dict.fromkeys(str(failure[0]) for failure in error.failures.values())
            if error.args[0] == _READING:  # names and shapes agree, else torch had stopped in an earlier step
                kinds = dict.fromkeys(type(failure[0]).__name__ for failure in error.failures.values())
                raise _incomplete(
                    path, f"a file has no tensor where the metadata says so ({', '.join(kinds)})"
                ) from None
            raise StrettoError(
                "E0611",
                f"'{path}' does not fit: {'; '.join(causes)}",
                help="build the model with the saved config, and the optimizer with the saved parameter groups",
            ) from None
    return state


def _metadata(path: Path, *, trusted: bool) -> Metadata:
    """The checkpoint's metadata; E0610 unless all its files are complete."""
    if not (path / METADATA).is_file():
        is_incomplete = path.is_dir() and any(path.glob("*.distcp"))
        raise StrettoError(
            "E0610",
            f"'{path}' is {f'an incomplete checkpoint: {METADATA} is missing' if is_incomplete else 'no checkpoint'}",
            expected="a folder written by stretto.save_checkpoint or torch.distributed.checkpoint",
            help="load an earlier one"
            if is_incomplete
            else "read safetensors files with stretto.load_weights, files of torch.save with torch.load",
        )
    try:
        metadata = reader_of(path, trusted=trusted)[0].read_metadata()
    except _UNREADABLE as error:
        raise _incomplete(path, f"{METADATA} cannot be read: {error}") from None
    ends: dict[str, int] = {}
    for storage in (metadata.storage_data or {}).values():
        ends[storage.relative_path] = max(ends.get(storage.relative_path, 0), storage.offset + storage.length)
    for name, end in sorted(ends.items()):
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size is None or size < end:
            raise _incomplete(path, f"{name} is missing" if size is None else f"{name} has {size} of {end} bytes")
    return metadata


def _incomplete(path: Path, why: str) -> StrettoError:
    return StrettoError("E0610", f"'{path}' is an incomplete checkpoint: {why}", help="load an earlier one")


def _elsewhere(model: nn.Module) -> list[str]:
    """The parameters of which this process has no part; their optimizer state is in other processes."""
    return [name for name, parameter in model.named_parameters() if not has_local_part(parameter)]


def _check_fits(
    path: Path, metadata: Metadata, state: Mapping[str, Any], elsewhere: Mapping[str, Sequence[str]]
) -> None:
    """Raise StrettoError E0611 unless the checkpoint has every tensor of the state, in its shape.

    `elsewhere` are the saved names of parameters that only other processes hold.
    """
    saved = metadata.state_dict_metadata
    others = {name for names in elsewhere.values() for name in names}
    notes = []
    for part, wanted in ((part, _tensor_shapes(part, values)) for part, values in state.items()):
        saved_shapes = {
            name: tuple(tensor.size)
            for name, tensor in saved.items()
            if name.startswith(f"{part}.") and isinstance(tensor, TensorStorageMetadata)
        }
        missing = [name for name in wanted if name not in saved_shapes]
        extra = [name for name in saved_shapes if name not in wanted and name not in others]
        reshaped = [name for name in wanted if name in saved_shapes and saved_shapes[name] != wanted[name]]
        if part == "optimizer" and not any(name.startswith("optimizer.") for name in saved):
            notes.append("the checkpoint holds no optimizer state")
            continue
        notes += [f"the checkpoint lacks {names_text(missing)}"] * bool(missing)
        notes += [f"the {part} lacks {names_text(extra)}"] * bool(extra)
        notes += [
            f'"{name}" has shape {list(saved_shapes[name])} in the checkpoint and {list(wanted[name])} in the {part}'
            for name in reshaped[:_SHOWN]
        ]
    if notes:
        raise StrettoError(
            "E0611",
            f"'{path}' is a checkpoint of another model or optimizer",
            notes=tuple((note, None) for note in notes),
            help="build the model with the saved config, and the optimizer of the saved class",
        )


def _tensor_shapes(part: str, values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in nested dicts, by their dotted names in a checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            shapes[f"{part}.{name}"] = tuple(value.shape)
        elif isinstance(value, Mapping):
            shapes.update(_tensor_shapes(f"{part}.{name}", value))
    return shapes


def _extra_text(model: nn.Module, extra: Mapping[str, Json]) -> str:
    """The text of `stretto.json`; E0615 for a value that JSON cannot hold."""
    for name, value in extra.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise StrettoError(
                "E0615",
                f'"{name}" cannot be saved in a checkpoint: {error}',
                expected="numbers, strings, None, or lists and dicts of them",
                help="make tensors buffers of the model, or write them to another file with torch.save",
            ) from None
    return json.dumps({"format": _FORMAT, "extra": extra, "random": _random_state_of(model)}, indent=1)


def _random_state_of(model: nn.Module) -> Json:
    return asdict(random_state(model)) if is_compiled(model) else None


def _read_extra(path: Path) -> dict[str, Json]:
    """The values of `stretto.json`: "extra" always, "random" where a compiled model was saved."""
    file = path / EXTRA_FILE
    if not file.is_file():
        return {"extra": {}}
    try:
        match json.loads(read_file(file).decode("utf-8")):
            case {"extra": dict(extra), "random": {"seed": int(seed), "step": int(step)}}:
                return {"extra": extra, "random": {"seed": seed, "step": step}}
            case {"extra": dict(extra), "random": None}:
                return {"extra": extra}
            case _:
                raise _incomplete(path, f"{EXTRA_FILE} lacks what stretto.save_checkpoint writes")
    except (OSError, ValueError, RecursionError) as error:
        raise _incomplete(path, f"{EXTRA_FILE} cannot be read: {error}") from None
