"""`stretto.compile`: make the calls of a model class, or of one model, run as a parallel program.

A decorated class stays the same class, with `__call__` and `__init__` replaced, as dataclasses do it. So its name,
`super().__init__`, subclasses and pickles keep working. Compiling one model changes neither the model nor its class:
the result is a compiled view, an instance of a new subclass that shares the model's attributes.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar, cast, overload

from torch import Tensor, nn

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...frontend.dynamic_sizes.dynamic_dims import DynamicDims, DynamicSpec
from .compiled_module import DYNAMIC_ATTRIBUTE, PLAN_ATTRIBUTE, STATES_ATTRIBUTE, compiled_module, is_tracing
from .distribution import place_parameters
from .plan_source import PlanSource, find_plan

M = TypeVar("M", bound=nn.Module)
Weights = str | Path | None
"""A safetensors file or folder to fill the model from; None: the model has its values."""
Dynamic = DynamicSpec | None
"""Which dims of the inputs differ between calls."""
States = Sequence[str]
"""Globs over the model's buffers."""
_WEIGHTS = "__stretto_weights__"
_PLACES = "__stretto_places__"
"""Marks an `__init__` that places the parameters when it is the outermost one."""


@overload
def compile(
    *, plan: PlanSource, weights: Weights = None, dynamic: Dynamic = None, states: States = ()
) -> Callable[[type[M]], type[M]]: ...


@overload
def compile(
    target: type[M], /, *, plan: PlanSource, weights: Weights = None, dynamic: Dynamic = None, states: States = ()
) -> type[M]: ...


@overload
def compile(
    target: M, /, *, plan: PlanSource, weights: Weights = None, dynamic: Dynamic = None, states: States = ()
) -> M: ...


def compile(
    target: Any = None, /, *, plan: PlanSource, weights: Weights = None, dynamic: Dynamic = None, states: States = ()
) -> Any:
    """Run a model under a plan: `@stretto.compile(plan=...)` on its class, or `stretto.compile(model, plan=...)`.

    Ranks are threads of this process, or the processes that torchrun started. With processes the parameters become
    DTensors: after the model is built (class), or in this call (model). So make the optimizer afterwards.

    The first call compiles a program. A later call compiles another one if any of these changed: train/eval, grad mode,
    trainable parameters, the inputs' structure, shapes or dtypes, or a model attribute that the forward reads (numbers,
    strings and small containers of them by value, others by identity). Values read from other objects are constants.

    `weights` is a safetensors file, or a folder of them, to fill the model from. Each process reads only its part, and
    parameters may be on the meta device until then (see `meta_parameters`).

    `dynamic` names sizes that differ between calls, such as `{"tokens": {0: "batch", 1: ("seq", 2, 512)}}`. Calls that
    differ only in named sizes share a program, and the batch need not divide by its ranks (docs/dynamic-sizes.md).
    `torch._dynamo.mark_dynamic` marks dims too.

    `states` names buffers that the forward changes, by glob, such as the keys and values of a cache. They stay with the
    ranks, and a step writes into their memory where nothing reads the old value after it. `shard buffers` in the plan
    places them. Tensors in an object among the arguments are buffers too ("cache.layers.0.keys"; docs/decoding.md).

    Raises PlanError, StrettoError E0601 for a target that is no model, CaptureError E0240 for a wrong `dynamic`; calls
    raise the errors of capture and passes.

    >>> model = compile(nn.Linear(4, 4), plan="mesh (tp=2)")
    >>> isinstance(model, nn.Linear), list(model.state_dict())
    (True, ['weight', 'bias'])
    """
    if target is None:
        return functools.partial(_compile_class, plan=plan, weights=weights, dynamic=dynamic, states=states)
    if isinstance(target, type):
        return _compile_class(target, plan=plan, weights=weights, dynamic=dynamic, states=states)
    if isinstance(target, nn.Module):
        return _compile_model(target, find_plan(plan), weights, dynamic, tuple(states))
    raise _no_model(target)


def _compile_class(
    cls: type[M], *, plan: PlanSource, weights: Weights = None, dynamic: Dynamic = None, states: States = ()
) -> type[M]:
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise _no_model(cls)
    resolved = find_plan(plan, _folder_of(cls))
    type.__setattr__(cls, "__call__", _call_of(cls))
    DynamicDims.of(dynamic)
    type.__setattr__(cls, PLAN_ATTRIBUTE, resolved)
    type.__setattr__(cls, DYNAMIC_ATTRIBUTE, dynamic)
    type.__setattr__(cls, STATES_ATTRIBUTE, tuple(states))
    for name, member in _additions(cls).items():
        type.__setattr__(cls, name, member)
    type.__setattr__(cls, _WEIGHTS, weights)
    _place_after_init(cls)
    type.__setattr__(cls, "__init_subclass__", classmethod(_init_subclass_of(cls)))
    return cls


def _compile_model(model: M, plan: Plan, weights: Weights, dynamic: Dynamic, states: tuple[str, ...]) -> M:
    DynamicDims.of(dynamic)
    place_parameters(model, plan, weights)
    return _compiled_view(model, plan, dynamic, states)


def _compiled_view(model: M, plan: Plan, dynamic: Dynamic, states: tuple[str, ...] = ()) -> M:
    """A view of `model`, with the same attribute dict, whose calls are compiled."""
    base = type(model)
    members = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__call__": _call_of(base),
        **_additions(base),
        "__reduce_ex__": functools.partialmethod(_reduce_view, base),
        PLAN_ATTRIBUTE: plan,
        DYNAMIC_ATTRIBUTE: dynamic,
        STATES_ATTRIBUTE: states,
    }
    view = types.new_class(base.__name__, (base,), exec_body=lambda body: body.update(members))
    return cast(M, _sharing_attributes(view, model))


def _sharing_attributes(cls: type[nn.Module], model: nn.Module) -> nn.Module:
    """A new object of `cls` that shares the attribute dict of `model`."""
    view = cls.__new__(cls)
    object.__setattr__(view, "__dict__", model.__dict__)
    return view


def _reduce_view(view: nn.Module, base: type[nn.Module], protocol: Any) -> Any:
    """For pickle and copy: the uncompiled model, and how to compile it again."""
    return _compiled_view, (
        _sharing_attributes(base, view),
        getattr(view, PLAN_ATTRIBUTE),
        getattr(view, DYNAMIC_ATTRIBUTE),
        getattr(view, STATES_ATTRIBUTE),
    )


def _call_of(cls: type[nn.Module]) -> Callable[..., Any]:
    plain: Callable[..., Any] = cls.__call__

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The model's result, computed on all ranks."""
        if is_tracing():
            return plain(self, *args, **kwargs)
        return compiled_module(self).call(self, args, kwargs)

    return __call__


def _additions(cls: type[nn.Module]) -> dict[str, Any]:
    """Methods that compiling adds to `cls`."""

    def no_sync(self: nn.Module) -> AbstractContextManager[None]:
        """Inside, gradients of this model's forwards stay unreduced until the next backward outside.

        Unreduced gradients are not in `.grad` yet: the backward of the first forward outside reduces and adds all of
        them at once. A gradient that needs no reduction is added to `.grad` at once.

        >>> import torch
        >>> model = compile(nn.Linear(4, 4), plan="mesh (dp=2)")
        >>> with model.no_sync():
        ...     model(torch.ones(2, 4)).sum().backward()
        >>> model.weight.grad is None
        True
        """
        return compiled_module(self).no_sync()

    def step(self: nn.Module, *args: Any, scale: float = 1.0, **kwargs: Any) -> Tensor:
        """The loss of one call; adds the gradient of `scale * loss` to every parameter's `.grad`.

        The same as `loss = model(...)`, `(scale * loss).backward()`, in train and eval mode, and under `no_grad` too.
        A pipeline starts backwards before its last forward has ended. They start with `scale` as their gradient, so
        that gradients in fp16 do not underflow. Inside `no_sync` gradients stay unreduced, as usual.

        Raises StrettoError E0617 where the forward returns no scalar loss.
        """
        return compiled_module(self).step(self, args, kwargs, scale)

    def zero_grad(self: nn.Module, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, the unreduced ones too."""
        plain_zero_grad(self, set_to_none)
        compiled_module(self).discard()

    plain_zero_grad = cls.zero_grad
    own = {name: member for name, member in (("no_sync", no_sync), ("step", step)) if not hasattr(cls, name)}
    return {**own, "zero_grad": zero_grad}


def _place_after_init(cls: type[nn.Module]) -> None:
    """Make the class's `__init__` place the parameters at its end, unless a subclass's `__init__` called it."""
    plain_init = cls.__init__
    if hasattr(plain_init, _PLACES):
        return

    @functools.wraps(plain_init)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        plain_init(self, *args, **kwargs)
        if type(self).__init__ is __init__:
            place_parameters(self, getattr(type(self), PLAN_ATTRIBUTE), getattr(type(self), _WEIGHTS))

    setattr(__init__, _PLACES, True)
    type.__setattr__(cls, "__init__", __init__)


def _init_subclass_of(cls: type[nn.Module]) -> Callable[..., None]:
    """An `__init_subclass__` that also makes subclasses place their parameters after their own `__init__`."""
    own = vars(cls).get("__init_subclass__")

    def __init_subclass__(subclass: type[nn.Module], **kwargs: Any) -> None:
        if own is None:
            super(cls, subclass).__init_subclass__(**kwargs)
        else:
            own.__func__(subclass, **kwargs)
        _place_after_init(subclass)

    return __init_subclass__


def _folder_of(cls: type) -> Path | None:
    try:
        return Path(inspect.getfile(cls)).parent
    except (TypeError, OSError):  # made in an interactive session
        return None


def _no_model(target: object) -> StrettoError:
    kind, cls = ("class", target) if isinstance(target, type) else ("value of type", type(target))
    return StrettoError(
        "E0601",
        f'stretto.compile got the {kind} "{cls.__qualname__}"',
        expected="a subclass of torch.nn.Module, or an instance of one",
        help="put @stretto.compile(plan=...) on the model's class, or call stretto.compile(model, plan=...)",
    )
