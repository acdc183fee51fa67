"""Changes of model and torch after the first call, without compiling for them: no program of an earlier call may serve.

A forward hook, autocast around the call, another default dtype, a frozen parameter. Each counts where eager mode then
gives something else.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...diagnostics import StrettoError
from ...runtime.checks.report import CheckRow, Verdict
from ..model.compiled_module import compiled_module
from .arguments import Arguments, fresh
from .eager_results import are_equal, returned

_NOTE = "eager mode then gives something else, and the compiled model runs the program of an earlier call"
Change = Callable[[nn.Module], AbstractContextManager[None]]
"""Inside, a model or torch is in another state."""


def rows_of_changes(compiled: nn.Module, model: nn.Module, arguments: Arguments, *, trains: bool) -> list[CheckRow]:
    """A row for each change after which the compiled model has a program for the call, and should not."""
    changes: dict[str, Change] = {
        "a forward hook that is added": _hooked,
        "autocast around a call": _under_autocast,
        "another default dtype": _with_another_default,
    }
    own = returned(model, arguments)
    counted = {what: change for what, change in changes.items() if _matters(model, arguments, own, change)}
    if trains and any(parameter.requires_grad for parameter in model.parameters()):
        counted["a parameter that is frozen"] = _frozen
    found = [what for what, change in counted.items() if _is_missed(compiled, arguments, change, trains=trains)]
    return [CheckRow("output", f"with {what}", math.inf, Verdict.DIFFERS, _NOTE) for what in found]


def _matters(model: nn.Module, arguments: Arguments, own: object, change: Change) -> bool:
    probe = copy.deepcopy(model)
    with change(probe):
        result = returned(probe, arguments)
    return own is not None and result is not None and not are_equal(own, result)


def _is_missed(compiled: nn.Module, arguments: Arguments, change: Change, *, trains: bool) -> bool:
    with change(compiled), torch.set_grad_enabled(trains):
        try:
            return compiled_module(compiled).has_program(compiled, (), fresh(arguments))
        except StrettoError:
            return False


@contextmanager
def _hooked(model: nn.Module) -> Iterator[None]:
    module = list(model.modules())[-1]
    hook = module.register_forward_hook(lambda _module, _arguments, result: pytree.tree_map(_doubled, result))
    try:
        yield
    finally:
        hook.remove()


def _doubled(leaf: object) -> object:
    return leaf * 2 if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


@contextmanager
def _under_autocast(_model: nn.Module) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


@contextmanager
def _with_another_default(_model: nn.Module) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if before is torch.float64 else torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    parameter = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    parameter.requires_grad_(False)
    try:
        yield
    finally:
        parameter.requires_grad_(True)
