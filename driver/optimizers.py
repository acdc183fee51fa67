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
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from ..diagnostics import StrettoError
from ..runtime.addends import Addends

_replaced: Any = WeakIdKeyDictionary()
"""Parameters that a model had before it was compiled, to their names; a tensor's own equality is by element."""
_waiting: weakref.WeakKeyDictionary[Addends, tuple[weakref.ref[Tensor], ...]] = weakref.WeakKeyDictionary()
"""Where gradients may wait, to the parameters whose they are."""
_is_real: ContextVar[bool] = ContextVar("stretto_real_step", default=True)


def note_replaced(parameters: Mapping[str, Tensor]) -> None:
    """Remember parameters, by name, that their model has given up for others."""
    _watch()
    for name, each in parameters.items():
        _replaced[each] = name


def note_waiting(addends: Addends, parameters: Iterable[Tensor]) -> None:
    """Remember whose gradients may wait in `addends`."""
    _watch()
    _waiting[addends] = tuple([weakref.ref(each) for each in parameters])


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
