"""Checks before an optimizer steps: it must hold the model's current parameters, and their gradients must be reduced.

Torch runs a hook before every optimizer step. Ours refuses a step on parameters that a model gave up when they became
DTensors, and a step while gradients of `no_sync()` are not reduced yet.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from ...diagnostics import StrettoError
from ...runtime.processes.parameters import move_to
from ...runtime.rank.unreduced_gradients import UnreducedGradients

_replaced: Any = WeakIdKeyDictionary()
"""Names of the parameters that models had before they were compiled, by tensor identity."""
_unreduced: weakref.WeakKeyDictionary[UnreducedGradients, tuple[weakref.ref[Tensor], ...]] = weakref.WeakKeyDictionary()
"""The parameters whose gradients each of these may hold."""
_moved: Any = WeakIdKeyDictionary()
"""Parameters moved to the ranks of their stage; an optimizer may have state of them on all ranks."""
_moved_with: weakref.WeakSet[Optimizer] = weakref.WeakSet()
"""Optimizers whose state has been moved with the parameters."""
_is_real: ContextVar[bool] = ContextVar("stretto_real_step", default=True)


def note_replaced(parameters: Mapping[str, Tensor]) -> None:
    """Remember parameters, by name, that their model no longer has."""
    _watch()
    for name, parameter in parameters.items():
        _replaced[parameter] = name


def note_unreduced(gradients: UnreducedGradients, parameters: Iterable[Tensor]) -> None:
    """Remember the parameters whose unreduced gradients `gradients` may hold."""
    _watch()
    _unreduced[gradients] = tuple([weakref.ref(parameter) for parameter in parameters])


def note_moved(parameters: Iterable[DTensor]) -> None:
    """Remember that parameters moved to fewer ranks; an optimizer's state of them moves at its next step."""
    _watch()
    for parameter in parameters:
        _moved[parameter] = None
        _moved_with.clear()


@contextmanager
def no_real_step() -> Iterator[None]:
    """Inside, steps are not checked: they only make the optimizer's state and change no parameter."""
    token = _is_real.set(False)
    try:
        yield
    finally:
        _is_real.reset(token)


@cache
def _watch() -> None:
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Raise StrettoError E0604 for stale parameters, E0605 for unreduced gradients."""
    if _moved and optimizer not in _moved_with:
        _move_state(optimizer)
    if not _is_real.get() or (not _replaced and not any(_unreduced)):
        return
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    stale_name = next((_replaced[parameter] for parameter in stepped if parameter in _replaced), None)
    kind = type(optimizer).__name__
    if stale_name is not None:
        raise StrettoError(
            "E0604",
            f'this {kind} holds "{stale_name}" from before the model was compiled; its step would not change the model',
            expected="the parameters of the compiled model, which are DTensors",
            help="make the optimizer after stretto.compile(model, plan=...)",
        )
    stepped_ids = {id(parameter) for parameter in stepped}
    for gradients, parameters in _unreduced.items():
        if gradients and any(id(parameter()) in stepped_ids for parameter in parameters):
            raise StrettoError(
                "E0605",
                f"this {kind} would step before the gradients are reduced",
                expected="a backward outside no_sync() before the step; it reduces all gradients",
                help="leave `with model.no_sync():` before the last forward and backward of a step",
            )


def _move_state(optimizer: Optimizer) -> None:
    """Move an optimizer's state to the ranks of its parameters."""
    _moved_with.add(optimizer)
    for parameter, state in optimizer.state.items():
        if parameter in _moved and isinstance(parameter, DTensor):
            for value in state.values():
                if isinstance(value, DTensor) and value.device_mesh != parameter.device_mesh:
                    move_to(value, parameter.device_mesh)
