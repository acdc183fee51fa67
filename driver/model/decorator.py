"""`stretto.compile`: a class of models, or one model, whose calls run as a parallel program.

A decorated class stays the class it is, with `__call__` and `__init__` replaced, as dataclasses do it: so its name,
`super().__init__`, subclasses and pickles mean what they meant. One model is compiled without touching its class or
itself: what comes back is a second face of it, of a subclass made for it, on the same attributes.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar, cast, overload

from torch import Tensor, nn

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...frontend.dynamic_sizes.dynamic_dims import DynamicDims, DynamicSpec
from .compiled_module import DYNAMIC_ATTRIBUTE, PLAN_ATTRIBUTE, compiled_module, is_tracing
from .distribution import place_parameters
from .plan_source import PlanSource, find_plan

M = TypeVar("M", bound=nn.Module)
Weights = str | Path | None
"""Where to read a model's weights, if not from the model."""
Dynamic = DynamicSpec | None
"""Which dims of the inputs differ from call to call."""
_WEIGHTS = "__stretto_weights__"
_PLACES = "__stretto_places__"
"""Marks an `__init__` that places the parameters when it is the outermost one."""


@overload
def compile(*, plan: PlanSource, weights: Weights = None, dynamic: Dynamic = None) -> Callable[[type[M]], type[M]]: ...


@overload
def compile(target: type[M], /, *, plan: PlanSource, weights: Weights = None, dynamic: Dynamic = None) -> type[M]: ...


@overload
def compile(target: M, /, *, plan: PlanSource, weights: Weights = None, dynamic: Dynamic = None) -> M: ...


def compile(target: Any = None, /, *, plan: PlanSource, weights: Weights = None, dynamic: Dynamic = None) -> Any:
    """Run a model under a plan: `@stretto.compile(plan=...)` on its class, or `stretto.compile(model, plan=...)`.

    Ranks are threads of this process, or the processes that torchrun started; then parameters become DTensors, right
    after the model is built (class) or here (model), so make the optimizer afterwards. A program is made at the first
    call, and again when train/eval, grad mode, trainable parameters, the structure, shapes or dtypes of the inputs, or
    attributes of the model that its forward reads change (numbers, strings, small lists and dicts of them by value,
    else by identity). What a forward reads of other objects is fixed at capture.

    `weights` is a safetensors file, or a folder of them, that the model is filled from: each process reads its own part
    alone, and parameters may be on the meta device until then (see `meta_parameters`).

    `dynamic` names sizes that differ from call to call, as in `{"tokens": {0: "batch", 1: ("seq", 2, 512)}}`: calls
    that differ in them alone share a program, and the batch need not divide by its ranks (docs/dynamic-sizes.md).
    Dims that `torch._dynamo.mark_dynamic` has marked are so too.

    Raises PlanError, StrettoError E0601 for what is no model, CaptureError E0240 for what names no dims, and at calls
    what capture and passes raise.

    >>> model = compile(nn.Linear(4, 4), plan="mesh (tp=2)")
    >>> isinstance(model, nn.Linear), list(model.state_dict())
    (True, ['weight', 'bias'])
    """
    if target is None:
        return functools.partial(_compile_class, plan=plan, weights=weights, dynamic=dynamic)
    if isinstance(target, type):
        return _compile_class(target, plan=plan, weights=weights, dynamic=dynamic)
    if isinstance(target, nn.Module):
        return _compile_model(target, find_plan(plan), weights, dynamic)
    raise _no_model(target)


def _compile_class(cls: type[M], *, plan: PlanSource, weights: Weights = None, dynamic: Dynamic = None) -> type[M]:
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise _no_model(cls)
    found = find_plan(plan, _folder_of(cls))
    type.__setattr__(cls, "__call__", _call_of(cls))
    DynamicDims.of(dynamic)
    type.__setattr__(cls, PLAN_ATTRIBUTE, found)
    type.__setattr__(cls, DYNAMIC_ATTRIBUTE, dynamic)
    for name, member in _additions(cls).items():
        type.__setattr__(cls, name, member)
    type.__setattr__(cls, _WEIGHTS, weights)
    _place_after_init(cls)
    type.__setattr__(cls, "__init_subclass__", classmethod(_init_subclass_of(cls)))
    return cls


def _compile_model(model: M, plan: Plan, weights: Weights, dynamic: Dynamic) -> M:
    DynamicDims.of(dynamic)
    place_parameters(model, plan, weights)
    return _second_face(model, plan, dynamic)


def _second_face(model: M, plan: Plan, dynamic: Dynamic) -> M:
    """An object with the attributes of `model`, one dict for both, whose calls are compiled."""
    base = type(model)
    members = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__call__": _call_of(base),
        **_additions(base),
        "__reduce_ex__": functools.partialmethod(_reduced, base),
        PLAN_ATTRIBUTE: plan,
        DYNAMIC_ATTRIBUTE: dynamic,
    }
    face = types.new_class(base.__name__, (base,), exec_body=lambda body: body.update(members))
    return cast(M, _sharing(face, model))


def _sharing(cls: type[nn.Module], model: nn.Module) -> nn.Module:
    """A new object of `cls` with the very attributes of `model`."""
    made = cls.__new__(cls)
    object.__setattr__(made, "__dict__", model.__dict__)
    return made


def _reduced(face: nn.Module, base: type[nn.Module], protocol: Any) -> Any:
    """For pickle and copy: the model as its own class has it, and how to compile it again."""
    return _second_face, (_sharing(base, face), getattr(face, PLAN_ATTRIBUTE), getattr(face, DYNAMIC_ATTRIBUTE))


def _call_of(cls: type[nn.Module]) -> Callable[..., Any]:
    plain: Callable[..., Any] = cls.__call__

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The model's result, computed by all ranks."""
        if is_tracing():
            return plain(self, *args, **kwargs)
        return compiled_module(self).call(self, args, kwargs)

    return __call__


def _additions(cls: type[nn.Module]) -> dict[str, Any]:
    """Methods that compiled models have and `cls` lacks."""

    def no_sync(self: nn.Module) -> AbstractContextManager[None]:
        """Inside, gradients of this model's forwards wait to be reduced until the next backward outside.

        What waits is not in `.grad` yet: the backward of the first forward outside adds all of it at once. A gradient
        that needs no reduction is in `.grad` as ever.

        >>> import torch
        >>> model = compile(nn.Linear(4, 4), plan="mesh (dp=2)")
        >>> with model.no_sync():
        ...     model(torch.ones(2, 4)).sum().backward()
        >>> model.weight.grad is None
        True
        """
        return compiled_module(self).no_sync()

    def step(self: nn.Module, *args: Any, scale: float = 1.0, **kwargs: Any) -> Tensor:
        """The loss of one call; the gradient of `scale` times it is added to every parameter's `.grad`.

        The same as `loss = model(...)`, `(scale * loss).backward()`, in one call, in train mode and in eval mode, under
        `no_grad` too. A pipeline's backwards begin before its last forward has ended: `scale` is what they begin with,
        so that gradients of small formats are scaled from the start. Inside `no_sync` gradients wait as ever.

        Raises StrettoError E0617 where the forward gives no scalar loss.
        """
        return compiled_module(self).step(self, args, kwargs, scale)

    def zero_grad(self: nn.Module, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters; those that wait for a reduction are forgotten."""
        plain_zero_grad(self, set_to_none)
        compiled_module(self).discard()

    plain_zero_grad = cls.zero_grad
    own = {name: member for name, member in (("no_sync", no_sync), ("step", step)) if not hasattr(cls, name)}
    return {**own, "zero_grad": zero_grad}


def _place_after_init(cls: type[nn.Module]) -> None:
    """Let the class's `__init__` place the parameters at its end, when it is not called by a subclass's."""
    built = cls.__init__
    if hasattr(built, _PLACES):
        return

    @functools.wraps(built)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        built(self, *args, **kwargs)
        if type(self).__init__ is __init__:
            place_parameters(self, getattr(type(self), PLAN_ATTRIBUTE), getattr(type(self), _WEIGHTS))

    setattr(__init__, _PLACES, True)
    type.__setattr__(cls, "__init__", __init__)


def _init_subclass_of(cls: type[nn.Module]) -> Callable[..., None]:
    """Subclasses place their parameters after their own `__init__`; what the class does for them is kept."""
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
        f'stretto.compile was given the {kind} "{cls.__qualname__}"',
        expected="a subclass of torch.nn.Module, or an instance of one",
        help="put @stretto.compile(plan=...) on the model's class, or call stretto.compile(model, plan=...)",
    )
