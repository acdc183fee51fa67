"""Load a target: `path/to/file.py:name`, or `hf:PATH` (a Hugging Face config, with or without weights)."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from ...diagnostics import Span
from ...dsl.spelling import did_you_mean
from ..captured import Mode
from ..metadata import is_users_file, line_span
from ..trace_errors import RAISED_BY_USER_CODE
from .entries import TargetEntry, entries_of, entry_view
from .hugging_face import load_hugging_face
from .target import DTYPES, Request, Target, TargetError, default_dtype

_DEFAULT = Request()


def load_target(text: str, request: Request = _DEFAULT) -> Target:
    """Load the model of a target, with inputs.

    The model is put into eval mode for inference and left as it is for training. Errors: TargetError E0201 to E0209,
    E0218, E0219, E0229 where the target has several entries and the text names none.
    """
    targets = load_targets(text, request)
    if [*targets] != [""]:
        raise TargetError(
            "E0229",
            f'"{text}" has the entries {", ".join(targets)}',
            expected="the name of one",
            help=f'write "{text}.{next(iter(targets))}"',
        )
    return targets[""]


def load_targets(text: str, request: Request = _DEFAULT) -> dict[str, Target]:
    """Load a model once, with the entries of the target by name; "" for one without names, or the entry in the text.

    Errors: those of `load_target`, E0229 for an entry that the target does not have.
    """
    _check(request)
    scheme, _, config_path = text.partition(":")
    if scheme == "hf" and config_path:
        return {"": load_hugging_face(config_path, request)}
    path, _, last = text.rpartition(":")
    name, dot, entry = last.partition(".")
    if not path or not name.isidentifier() or (dot and not entry.isidentifier()):
        raise TargetError(
            "E0201",
            f'"{text}" is not a target',
            expected='"path/to/file.py:name" or "hf:PATH"',
            help=f'write "{text}:name" with the name of a function that returns (model, inputs)' if not path else "",
        )
    return _load_file(path, name, entry, request)


def _check(request: Request) -> None:
    if request.dtype is not None and request.dtype not in DTYPES:
        raise TargetError(
            "E0218",
            f'unknown dtype "{request.dtype}"',
            expected=", ".join(DTYPES),
            help=did_you_mean(request.dtype, DTYPES),
        )
    for name, value in (("batch", request.batch), ("seq", request.seq)):
        if value is not None and value < 1:
            raise TargetError("E0219", f"{name} is {value}", expected="at least 1")


def _load_file(path: str, name: str, entry: str, request: Request) -> dict[str, Target]:
    if not os.path.isfile(path):
        raise TargetError("E0202", f'file "{path}" does not exist', help="give the path from the current folder")
    dtype = DTYPES[request.dtype] if request.dtype else None
    with _folder_on_path(path), torch.random.fork_rng(devices=[]), default_dtype(dtype):
        torch.manual_seed(request.seed)
        module = _run(f'file "{path}"', lambda: _import(path))
        function = _member(module, name, path)
        result = _run(f'"{name}" in "{path}"', function)
    model, entries = _model_and_entries(result, name, function)
    if request.mode is Mode.INFER:
        model.eval()
    real = not any(isinstance(tensor, FakeTensor) for tensor in model.parameters())
    if dtype is not None:
        _convert(model, dtype, real=real)

    def target(own: str, called: TargetEntry) -> Target:
        inputs = called.inputs if dtype is None else {k: _converted(v, dtype) for k, v in called.inputs.items()}
        source = {"kind": "file", "path": path, "name": f"{name}.{own}" if own else name}
        return Target(entry_view(model, called.call), inputs, real, source, seen_ranges(inputs))

    if not entry:
        return {own: target(own, called) for own, called in entries.items()}
    if entry not in entries:
        names = [own for own in entries if own]
        raise TargetError(
            "E0229",
            f'"{name}" in "{path}" has no entry "{entry}"',
            expected=", ".join(names) if names else "a target without entries",
            help=did_you_mean(entry, names) if names else f'write "{path}:{name}"',
        )
    return {"": target(entry, entries[entry])}


def _import(path: str) -> ModuleType:
    name = "stretto_target_" + os.path.splitext(os.path.basename(path))[0]
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise TargetError("E0202", f'"{path}" is not a Python file', expected="a name that ends in .py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def _member(module: ModuleType, name: str, path: str) -> Callable[[], Any]:
    public = [key for key in vars(module) if not key.startswith("_")]
    if not hasattr(module, name):
        raise TargetError("E0203", f'"{path}" has no "{name}"', span=Span(path, 1), help=did_you_mean(name, public))
    member = getattr(module, name)
    if not callable(member):
        raise TargetError(
            "E0205",
            f'"{name}" in "{path}" is of type "{type(member).__name__}"',
            expected="a function without arguments that returns (model, inputs)",
        )
    parameters = inspect.signature(member).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [item.name for item in parameters if item.default is item.empty and item.kind not in optional]
    if required:
        raise TargetError(
            "E0205",
            f'"{name}" in "{path}" requires arguments: {", ".join(required)}',
            expected="a function without arguments that returns (model, inputs)",
            help="give them defaults, or wrap it in a function that passes them",
        )
    function: Callable[[], Any] = member
    return function


def _model_and_entries(result: Any, name: str, function: Callable[[], Any]) -> tuple[nn.Module, dict[str, TargetEntry]]:
    """What a target returned: its entries by name, or "" and its forward."""
    match result:
        case (nn.Module() as model, dict() as inputs) if all(isinstance(key, str) for key in inputs):
            entries = entries_of(inputs)
            return model, entries if entries and len(entries) == len(inputs) else {"": TargetEntry(model, dict(inputs))}
        case (first, second):
            returned = f'("{type(first).__name__}", "{type(second).__name__}")'
        case _:
            returned = f'"{type(result).__name__}"'
    code = getattr(inspect.unwrap(function), "__code__", None)
    raise TargetError(
        "E0205",
        f'"{name}" returns {returned}',
        span=None if code is None else line_span(code.co_filename, code.co_firstlineno),
        expected="(model, inputs): an nn.Module, and a dict of the arguments of its forward by name; or a dict of "
        "entries, each a callable of the model with such a dict",
    )


def _run(name: str, function: Callable[[], Any]) -> Any:
    """Call the user's code. Errors: E0204 with the message and line of what it raises."""
    try:
        return function()
    except (*RAISED_BY_USER_CODE, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users_file(frame.filename)]
        span = line_span(frames[-1].filename, frames[-1].lineno or 1) if frames else None
        if isinstance(error, SyntaxError) and error.filename:
            span = line_span(error.filename, error.lineno or 1)
        message = str(error).strip().split("\n")[0]
        raise TargetError(
            "E0204",
            f"{name} raises {type(error).__name__}: {message}",
            span=span,
            help='put what the file does as a script below: if __name__ == "__main__":'
            if isinstance(error, SystemExit)
            else "",
        ) from None


@contextmanager
def _folder_on_path(path: str) -> Iterator[None]:
    """Inside, modules beside the file can be imported, as if Python ran the file."""
    folder = os.path.dirname(os.path.abspath(path))
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _convert(model: nn.Module, dtype: torch.dtype, *, real: bool) -> None:
    if real:
        model.to(dtype)
        return
    wrong = next((name for name, p in model.named_parameters() if p.is_floating_point() and p.dtype != dtype), None)
    if wrong is not None:
        raise TargetError(
            "E0218",
            f'parameter "{wrong}" has no values and cannot be converted to "{dtype}"',
            help="build the model under the default dtype (torch.get_default_dtype())",
        )


def _converted(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def seen_ranges(inputs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By integer input, the range up to the largest value in the example."""
    ranges = {}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor) and _is_index(value):
            ranges[name] = {"high": max(1, int(value.max()) + 1)}
    return ranges


def _is_index(value: torch.Tensor) -> bool:
    return value.numel() > 0 and not (value.is_floating_point() or value.is_complex() or value.dtype is torch.bool)
