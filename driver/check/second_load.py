"""Load a target's model again without the loader, and refuse modules that the loader left in another mode.

It shares no code with `frontend/targets/`. A `file.py:name` target alone has such a function; a Hugging Face config
says all that matters here itself.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ...frontend.captured import Mode
from ...frontend.targets.target import DTYPES, Request, Target, TargetError
from ...frontend.trace_errors import RAISED_BY_USER_CODE

_MODULE = "stretto_target_again"
_MODES = {True: "train", False: "eval"}


def load_again(name: str, request: Request) -> nn.Module | None:
    """The model of a `file.py:name` target with the same seed; None for others, and where a second load fails."""
    path, _, function = name.rpartition(":")
    if not os.path.isfile(path):
        return None
    specification = importlib.util.spec_from_file_location(_MODULE, path)
    if specification is None or specification.loader is None:
        return None
    module = importlib.util.module_from_spec(specification)
    sys.modules[_MODULE] = module
    with torch.random.fork_rng(devices=[]), _surroundings(path, request):
        torch.manual_seed(request.seed)
        try:
            specification.loader.exec_module(module)
            model, _ = vars(module)[function.partition(".")[0]]()
        except (*RAISED_BY_USER_CODE, SystemExit):  # such as a library of ops that is registered twice
            return None
    return model if isinstance(model, nn.Module) else None


@contextmanager
def _surroundings(path: str, request: Request) -> Iterator[None]:
    """Inside, files beside the target can be imported, and new tensors have the dtype asked for."""
    folder, dtype = os.path.dirname(os.path.abspath(path)), torch.get_default_dtype()
    sys.path.insert(0, folder)
    torch.set_default_dtype(DTYPES[request.dtype] if request.dtype else dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if folder in sys.path:
            sys.path.remove(folder)


def refuse_other_modes(name: str, target: Target, request: Request, again: nn.Module | None) -> None:
    """Raise TargetError E0667 unless each module of the target is in the mode that was asked for.

    For inference that is eval mode. For training a Hugging Face model is in train mode, and another one as its
    function returned it. A class that overrides `train` or `eval` decides for its own modules.
    """
    model = target.model
    found = _modes(model)
    if request.mode is Mode.INFER or target.source.get("kind") == "hf":
        expected = dict(_as_asked(model, "", request.mode))
    else:
        expected = {} if again is None else _modes(again)
    for path, training in found.items():
        if expected.get(path, training) != training:
            raise TargetError(
                "E0667",
                f'module "{path or type(model).__name__}" of {name} was loaded in {_MODES[training]} mode',
                expected=f"{_MODES[expected[path]]} mode, for --mode {request.mode}",
                help="this is a fault of loading: please report it with the target",
            )


def _modes(model: nn.Module) -> dict[str, bool]:
    return {path: module.training for path, module in model.named_modules()}


def _as_asked(module: nn.Module, path: str, mode: Mode) -> Iterator[tuple[str, bool]]:
    """By path: whether a module is in train mode once the mode is set by its class, whatever its instance says."""
    kind = type(module)
    if kind.train is nn.Module.train and kind.eval is nn.Module.eval:
        yield path, mode is Mode.TRAIN
        for name, child in module.named_children():
            yield from _as_asked(child, f"{path}.{name}" if path else name, mode)
        return
    if mode is Mode.TRAIN:
        kind.train(module, True)
    else:
        kind.eval(module)
    for name, training in _modes(module).items():
        yield ".".join(filter(None, (path, name))), training
