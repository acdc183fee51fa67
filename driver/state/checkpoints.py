"""Checkpoints of a model and its optimizer, in the format of `torch.distributed.checkpoint`, whole or not there.

What is saved under one plan is loaded under another, on another number of ranks, or by plain PyTorch: names are the
model's own, and each rank reads the parts that it holds. A checkpoint is a folder that torch writes, with one file of
ours beside it, `stretto.json`, for what is no tensor. It is written beside its place and then renamed.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ...diagnostics import StrettoError
from ...runtime.philox import RngState
from ...runtime.processes.parameters import has_local_part
from ...runtime.processes.world import join
from ..model.compiled_module import compiled_module, is_compiled, random_state, set_random_state
from ..model.distribution import processes
from .held_tensors import few, is_writer, meet
from .optimizer_state import fill_optimizer, in_order, owned_by, room_for_state, state_by_name

OURS = "stretto.json"
_METADATA = ".metadata"
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
"""What reading a damaged list of contents raises."""
_READING = "read"
"""The last of torch's steps when it loads: those before it read the list of contents alone."""

Json = Any
"""What `json` can write: numbers, strings, None, lists and dicts of them."""


def save_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **extra: Json
) -> None:
    """Write a checkpoint folder; what was there stays until all is written. All processes call it.

    `extra` are values that JSON can hold, such as `step=3` or `scheduler=scheduler.state_dict()`; `load_checkpoint`
    gives them back. Of a compiled model the state of its random numbers is kept too. Raises StrettoError E0508 where
    the folder cannot be written, and where it is no checkpoint, E0615 for a value that JSON cannot hold.
    """
    path = Path(os.path.abspath(path))
    text = _text(model, extra)
    _join()
    partial = path.with_name(f".{path.name}.partial")
    if path.exists() and not (path / _METADATA).exists():
        raise StrettoError("E0508", f"'{path}' is there and is no checkpoint", help="choose another name, or remove it")
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    if optimizer is not None:
        state["optimizer"] = state_by_name(model, optimizer)
    try:
        if is_writer():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (partial / OURS).write_text(text, encoding="utf-8")
        meet()
        with _one_process_is_meant():
            save(state, storage_writer=FileSystemWriter(partial, overwrite=True), no_dist=not dist.is_initialized())
        if is_writer():
            _swap(partial, path)
    except OSError as error:
        raise StrettoError("E0508", f"'{path}' cannot be written: {error.strerror}") from None
    meet()


def load_checkpoint(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Json]:
    """Fill the model, and the optimizer if one is given, from a checkpoint; the `extra` values that it was saved with.

    Each process reads the parts that it holds now, whatever plan or number of ranks wrote them. Checkpoints that torch
    itself wrote are read where they hold {"model": ..., "optimizer": ...}. Raises StrettoError E0610 for a folder that
    is no checkpoint or a torn one, E0611 where it is of another model or optimizer; then nothing is changed.
    """
    path = Path(path)
    metadata = _metadata(path)
    _join()
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    if optimizer is not None:
        state["optimizer"] = _with_state_there(metadata, room_for_state(model, optimizer))
    _check_fits(path, metadata, state, owned_by(list(metadata.state_dict_metadata), _elsewhere(model)))
    ours = _ours(path)
    if optimizer is not None:
        groups = _load(path, {"optimizer": {"param_groups": copy.deepcopy(state["optimizer"].pop("param_groups"))}})
        ordered = in_order(model, optimizer, groups["optimizer"]["param_groups"])
    state = _load(path, {part: values for part, values in state.items() if values})
    set_model_state_dict(model, state["model"])
    if optimizer is not None:
        fill_optimizer(model, optimizer, state.get("optimizer", {}).get("state", {}), ordered)
    if is_compiled(model):
        compiled_module(model).discard()
    if "random" in ours and is_compiled(model):
        set_random_state(model, RngState(**ours["random"]))
    return dict(ours["extra"])


def _join() -> None:
    """Where ranks are processes, they are connected before they save: a model may not have been called yet."""
    if processes() > 1:
        join()


def _with_state_there(metadata: Metadata, room: dict[str, Any]) -> dict[str, Any]:
    """What to load of an optimizer's state: that of the parameters which the checkpoint has a state of."""
    there = owned_by(list(metadata.state_dict_metadata), list(room["state"]))
    state = {name: values for name, values in room["state"].items() if name in there}
    return {**({"state": state} if state else {}), "param_groups": room["param_groups"]}


def _load(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """`state` with tensors filled, other values replaced; E0611 where one is missing, E0610 for a damaged file."""
    with _one_process_is_meant():
        try:
            load(state, storage_reader=FileSystemReader(path), no_dist=not dist.is_initialized())
        except CheckpointException as error:
            causes = dict.fromkeys(str(each[0]) for each in error.failures.values())
            if error.args[0] == _READING:  # what is to be read fits, else it would not have come so far
                kinds = dict.fromkeys(type(each[0]).__name__ for each in error.failures.values())
                raise _torn(path, f"a file holds no tensor where one should be ({', '.join(kinds)})") from None
            raise StrettoError(
                "E0611",
                f"'{path}' does not fit: {'; '.join(causes)}",
                help="build the model with the config, and the optimizer with the parameter groups, that were saved",
            ) from None
    return state


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Without the warning that one process saves alone: with ranks as threads it holds everything."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _metadata(path: Path) -> Metadata:
    """What the checkpoint says of itself; E0610 unless all of it is there."""
    if not (path / _METADATA).is_file():
        torn = path.is_dir() and any(path.glob("*.distcp"))
        raise StrettoError(
            "E0610",
            f"'{path}' is {'a torn checkpoint: its list of contents is missing' if torn else 'no checkpoint'}",
            expected="a folder written by stretto.save_checkpoint or torch.distributed.checkpoint",
            help="load an earlier one"
            if torn
            else "stretto.load_weights reads safetensors files, torch.load and load_state_dict what torch.save wrote",
        )
    try:
        found = FileSystemReader(path).read_metadata()
    except _UNREADABLE as error:
        raise _torn(path, f"its list of contents cannot be read: {error}") from None
    ends: dict[str, int] = {}
    for place in (found.storage_data or {}).values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in sorted(ends.items()):
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size is None or size < end:
            raise _torn(path, f"{name} is missing" if size is None else f"{name} has {size} bytes of {end}")
    return found


def _torn(path: Path, why: str) -> StrettoError:
    return StrettoError("E0610", f"'{path}' is a torn checkpoint: {why}", help="load an earlier one")


def _elsewhere(model: nn.Module) -> list[str]:
    """The parameters of which this process has no part: other processes hold the optimizer's state of them."""
    return [name for name, each in model.named_parameters() if not has_local_part(each)]


def _check_fits(
    path: Path, metadata: Metadata, state: Mapping[str, Any], elsewhere: Mapping[str, Sequence[str]]
) -> None:
    """Raise StrettoError E0611 unless the checkpoint has every tensor of the state, in its shape.

    What is saved of parameters that are `elsewhere` is for other processes.
    """
    saved = metadata.state_dict_metadata
    others = {name for names in elsewhere.values() for name in names}
    notes = []
    for part, wanted in ((part, _tensors(part, values)) for part, values in state.items()):
        held = {
            name: tuple(each.size)
            for name, each in saved.items()
            if name.startswith(f"{part}.") and isinstance(each, TensorStorageMetadata)
        }
        missing = [name for name in wanted if name not in held]
        left = [name for name in held if name not in wanted and name not in others]
        other = [name for name in wanted if name in held and held[name] != wanted[name]]
        if part == "optimizer" and not any(name.startswith("optimizer.") for name in saved):
            notes.append(f"it holds no state of an optimizer, and {part} was asked for")
            continue
        notes += [f"it lacks {few(missing)}"] * bool(missing)
        notes += [f"the {part} lacks {few(left)}"] * bool(left)
        notes += [f"{name} is {list(held[name])} there, and {list(wanted[name])} here" for name in other[:_SHOWN]]
    if notes:
        raise StrettoError(
            "E0611",
            f"'{path}' is a checkpoint of another model or optimizer",
            notes=tuple((note, None) for note in notes),
            help="build the model with the config, and the optimizer with the class, that were saved",
        )


def _tensors(part: str, values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a nest of dicts, by the dotted names that a checkpoint gives them."""
    found: dict[str, tuple[int, ...]] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            found[f"{part}.{name}"] = tuple(value.shape)
        elif isinstance(value, Mapping):
            found.update(_tensors(f"{part}.{name}", value))
    return found


def _text(model: nn.Module, extra: Mapping[str, Json]) -> str:
    """Our file; E0615 for a value that JSON cannot hold."""
    for name, value in extra.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise StrettoError(
                "E0615",
                f'"{name}" cannot be kept in a checkpoint: {error}',
                expected="numbers, strings, None, or lists and dicts of them",
                help="keep tensors in the model as buffers, or write them to a file of their own with torch.save",
            ) from None
    return json.dumps({"format": _FORMAT, "extra": extra, "random": _random_state_of(model)}, indent=1)


def _random_state_of(model: nn.Module) -> Json:
    return asdict(random_state(model)) if is_compiled(model) else None


def _ours(path: Path) -> dict[str, Json]:
    """What stands in our file; "extra" always, "random" where a compiled model was saved."""
    file = path / OURS
    if not file.exists():
        return {"extra": {}}
    try:
        match json.loads(file.read_text(encoding="utf-8")):
            case {"extra": dict(extra), "random": {"seed": int(seed), "step": int(step)}}:
                return {"extra": extra, "random": {"seed": seed, "step": step}}
            case {"extra": dict(extra), "random": None}:
                return {"extra": extra}
            case _:
                raise _torn(path, f"{OURS} lacks what stretto.save_checkpoint writes")
    except (ValueError, RecursionError) as error:
        raise _torn(path, f"{OURS} cannot be read: {error}") from None


def _swap(fresh: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    os.rename(fresh, path)
    shutil.rmtree(old, ignore_errors=True)
