"""Load a target again without the loader, and compare: modes, the callable of an entry, inputs, what options asked for.

It shares no code with `frontend/targets/`, whose result is on both sides of other checks. A `file.py:name` target alone
has such a function; a Hugging Face config says all that matters here itself.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...frontend.captured import Mode
from ...frontend.targets.target import DTYPES, Request, Target, TargetError
from ...frontend.trace_errors import RAISED_BY_USER_CODE
from ...runtime.checks.report import TARGET, CheckRow, Verdict
from ...runtime.program.program import Program
from ..readings.plan_text import covers

_MODULE = "stretto_target_again"
_MODES = {True: "train", False: "eval"}


@dataclass(frozen=True)
class Again:
    """What a target's own function returned."""

    model: nn.Module
    call: Callable[..., Any]
    """The entry's; the model itself where the target has none."""
    inputs: Mapping[str, Any]


def load_again(name: str, request: Request) -> Again | None:
    """A `file.py:name` target with the same seed; None for others, and where a second load fails."""
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
            model, called = vars(module)[function.partition(".")[0]]()
        except (*RAISED_BY_USER_CODE, SystemExit):  # such as a library of ops that is registered twice
            return None
    entry = function.partition(".")[2]
    call, inputs = called[entry] if entry else (model, called)
    return Again(model, call, inputs) if isinstance(model, nn.Module) else None


def rows_of_loading(target: Target, request: Request, again: Again | None) -> list[CheckRow]:
    """A row for each way in which the loaded target is not its own function's, or not what options asked for."""
    found = [*_not_as_asked(target, request), *(() if again is None else _not_as_returned(target, again))]
    return [CheckRow(TARGET, name, math.inf, Verdict.DIFFERS, note) for name, note in found]


def rows_of_states(program: Program) -> list[CheckRow]:
    """A row for each buffer that a glob of `--states` names and the program has as a plain buffer."""
    request = program.manifest.source.get("request")
    globs = request.get("states") if isinstance(request, Mapping) else None
    patterns = [str(each) for each in globs] if isinstance(globs, list | tuple) else []
    names = (each.name for each in program.of_kind("buffer"))
    note = "it was asked for as a state, and the program has it as a buffer, which each call copies"
    return [
        CheckRow(TARGET, name, math.inf, Verdict.DIFFERS, note)
        for name in names if any(covers(pattern, name) for pattern in patterns)
    ]  # fmt: skip


def _not_as_asked(target: Target, request: Request) -> Iterator[tuple[str, str]]:
    is_file = target.source.get("kind") == "file"
    if request.dtype is not None and is_file:  # a library may keep single layers in another format
        tensors = [*target.model.named_parameters(), *_tensors(target.inputs)]
        others = {str(each.dtype) for _, each in tensors if each.is_floating_point()} - {str(DTYPES[request.dtype])}
        if others:
            yield "--dtype", f"{request.dtype} was asked for, and there are {', '.join(sorted(others))}"
    for name, tensor in () if is_file else _tensors(target.inputs):
        batch = tensor.shape[0] if tensor.dim() else request.batch
        tokens = tensor.shape[1] if tensor.dim() == 2 and not tensor.is_floating_point() else request.seq
        for option, asked, own in (("--batch", request.batch, batch), ("--seq", request.seq, tokens)):
            if asked is not None and asked != own:
                yield option, f"{asked} was asked for, and input {name} has {own}"


def _not_as_returned(target: Target, again: Again) -> Iterator[tuple[str, str]]:
    own, other = _function(type(target.model).forward), _function(again.call)
    if own != other:
        yield "entry", f"the target names {other}, and {own} was loaded"
    first, second = ({name: each.shape for name, each in _tensors(inputs)} for inputs in (target.inputs, again.inputs))
    if first != second:
        name = next(name for name in (*second, *first) if first.get(name) != second.get(name))
        yield (
            "inputs",
            f"the target gives input {name} {_text(second.get(name))}, and it was loaded {_text(first.get(name))}",
        )


def _function(call: Callable[..., Any]) -> str:
    """The name of a callable in its file; of a model, that of its forward."""
    function: Any = type(call).forward if isinstance(call, nn.Module) else call
    return str(getattr(getattr(function, "__wrapped__", function), "__qualname__", type(function).__qualname__))


def _tensors(inputs: Mapping[str, Any]) -> list[tuple[str, torch.Tensor]]:
    leaves, _ = pytree.tree_flatten_with_path(dict(inputs))
    return [(pytree.keystr(path), leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]


def _text(shape: torch.Size | None) -> str:
    return "no tensor" if shape is None else f"of shape {[*shape]}"


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


def refuse_other_modes(name: str, target: Target, request: Request, again: Again | None) -> None:
    """Raise TargetError E0667 unless each module of the target is in the mode that was asked for.

    For inference that is eval mode. For training a Hugging Face model is in train mode, and another one as its
    function returned it. A class that overrides `train` or `eval` decides for its own modules.
    """
    model = target.model
    found = _modes(model)
    if request.mode is Mode.INFER or target.source.get("kind") == "hf":
        expected = dict(_as_asked(model, "", request.mode))
    else:
        expected = {} if again is None else _modes(again.model)
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
