"""What an optimizer must not do with a compiled model's parameters, found when it steps.

Every optimizer of torch runs a hook before its step. One hook of ours looks whether the optimizer holds parameters that
a model no longer has, because processes took their parts of them, or whose gradients still wait for a reduction.
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
"""Parameters that a model had before it was compiled, to their names; a tensor's own equality is by element."""
_waiting: weakref.WeakKeyDictionary[UnreducedGradients, tuple[weakref.ref[Tensor], ...]] = weakref.WeakKeyDictionary()
"""Where gradients may wait, to the parameters whose they are."""
_moved: Any = WeakIdKeyDictionary()
"""Parameters that were moved to the ranks of their stage after optimizers may have made state for them."""
_followed: weakref.WeakSet[Optimizer] = weakref.WeakSet()
"""Optimizers whose state has followed them."""
_is_real: ContextVar[bool] = ContextVar("stretto_real_step", default=True)


def note_replaced(parameters: Mapping[str, Tensor]) -> None:
    """Remember parameters, by name, that their model has given up for others."""
    _watch()
    for name, each in parameters.items():
        _replaced[each] = name


def note_waiting(addends: UnreducedGradients, parameters: Iterable[Tensor]) -> None:
    """Remember whose gradients may wait in `addends`."""
    _watch()
    _waiting[addends] = tuple([weakref.ref(each) for each in parameters])


def note_moved(parameters: Iterable[DTensor]) -> None:
    """Remember that parameters stand on fewer ranks than before: what optimizers hold of them follows at a step."""
    _watch()
    for each in parameters:
        _moved[each] = None
        _followed.clear()


@contextmanager
def no_real_step() -> Iterator[None]:
    """Inside, a step changes no parameter: it is taken to see what state the optimizer has, and any is allowed."""
    token = _is_real.set(False)
    try:
        yield
    finally:
        _is_real.reset(token)


@cache
def _watch() -> None:
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Raise StrettoError E0604 or E0605 for a step that would not do what its caller means."""
    if _moved and optimizer not in _followed:
        _follow(optimizer)
    if not _is_real.get() or (not _replaced and not any(_waiting)):
        return
    held = [each for group in optimizer.param_groups for each in group["params"]]
    stale = next((_replaced[each] for each in held if each in _replaced), None)
    kind = type(optimizer).__name__
    if stale is not None:
        raise StrettoError(
            "E0604",
            f'this {kind} holds "{stale}" as it was before the model was compiled; its step would change nothing',
            expected="the parameters that the compiled model has now: DTensors, of which this process holds its part",
            help="make the optimizer after stretto.compile(model, plan=...)",
        )
    own = {id(each) for each in held}
    for addends, parameters in _waiting.items():
        if addends and any(id(each()) in own for each in parameters):
            raise StrettoError(
                "E0605",
                f"this {kind} would step while gradients wait for their reduction",
                expected="a backward outside no_sync() before the step: it reduces what has waited",
                help="leave `with model.no_sync():` before the last forward and backward of a step",
            )


def _follow(optimizer: Optimizer) -> None:
    """Let the state of moved parameters, loaded before they were, stand where they do."""
    _followed.add(optimizer)
    for parameter, state in optimizer.state.items():
        if parameter in _moved and isinstance(parameter, DTensor):
            for each in state.values():
                if isinstance(each, DTensor) and each.device_mesh != parameter.device_mesh:
                    move_to(each, parameter.device_mesh)
