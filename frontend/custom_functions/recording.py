"""Run a custom autograd function in line during a trace: its forward, then its backward on symbolic tangents.

Both are recorded between marks (`markers.py`). So a backward that is not the derivative of the forward is kept, and one
that branches on values is found at its line. Without a gradient to compute, only the forward runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction

from ..captured import CaptureError
from ..trace_errors import RAISED_BY_USER_CODE, error_in_backward
from .context import TracedContext
from .markers import CALL, VALUE

Function = type[torch.autograd.Function]
_MOST_ABSENT = 4
"""Outputs whose gradients may be None: 15 backwards are recorded for four."""
_depth: ContextVar[int] = ContextVar("recorded functions", default=0)


def is_recording() -> bool:
    """Whether a custom function is being recorded: what it calls is part of it."""
    return _depth.get() > 0


@contextmanager
def _recording() -> Iterator[None]:
    token = _depth.set(_depth.get() + 1)
    try:
        yield
    finally:
        _depth.reset(token)


def record_call(cls: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of `cls.apply(*args, **kwargs)`, some tensor of which requires a gradient."""
    args = _bound(cls, args, kwargs)
    context = TracedContext(tuple(isinstance(argument, Tensor) and argument.requires_grad for argument in args))
    inputs = [index for index, argument in enumerate(args) if isinstance(argument, Tensor)]
    with torch.no_grad(), _recording(), _no_differentiation(cls.__qualname__):
        values = [VALUE(argument) if isinstance(argument, Tensor) else argument for argument in args]
        result = _forward(cls, context, values)
        outputs = result if isinstance(result, tuple) else (result,)
        differentiable = [index for index, output in enumerate(outputs) if _has_gradient(output, context)]
        tangents: list[Tensor | None] = []
        gradients: list[Tensor | None] = []
        for present in _tangents_present(cls, context, differentiable):
            given = {index: VALUE(outputs[index]) for index in present}
            with _autocast_off():
                returned = _backward(cls, context, [given.get(index) for index in range(len(outputs))], args)
            tangents += [given.get(index) for index in differentiable]
            gradients += [returned[index] for index in inputs]
    positions = [index for index, output in enumerate(outputs) if isinstance(output, Tensor)]
    tensors = [outputs[index] for index in positions]
    places = [positions.index(index) for index in differentiable]
    marked = [values[index] for index in inputs], tensors, tangents, gradients, places, cls.__qualname__
    with _recording():
        results = iter(_Joined.apply(marked, *(args[index] for index in inputs)))  # type: ignore[no-untyped-call]
    joined = tuple(next(results) if isinstance(output, Tensor) else output for output in outputs)
    return joined if isinstance(result, tuple) else joined[0]


@contextmanager
def _no_differentiation(name: str) -> Iterator[None]:
    """Inside, calls of torch's autograd engine raise E0227: torch's export does not trace what it computes."""

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise CaptureError(
            "E0227",
            f'the custom autograd function "{name}" calls torch\'s autograd inside of its own forward or backward',
            expected="a backward written with tensor ops",
            help="write the gradient by its formula; for a checkpoint, use torch.utils.checkpoint.checkpoint",
        )

    names = "grad", "backward"
    originals = [getattr(torch.autograd, each) for each in names]
    for each in names:
        setattr(torch.autograd, each, refuse)
    try:
        yield
    finally:
        for each, original in zip(names, originals, strict=True):
            setattr(torch.autograd, each, original)


class _Joined(torch.autograd.Function):
    """Makes the outputs of a mark require a gradient, as those of the function do."""

    @staticmethod
    def forward(ctx: Any, marked: tuple[Any, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
        *_, differentiable, ctx.name = marked
        outputs = CALL(list(inputs), *marked)
        ctx.mark_non_differentiable(*(o for index, o in enumerate(outputs) if index not in differentiable))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> Any:
        raise CaptureError(
            "E0227",
            f'the forward differentiates through "{ctx.name}", a custom autograd function',
            expected="torch.autograd.grad of torch's own ops",
            help="compute this gradient by the function's formula",
        )


def _bound(cls: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
    """The positional arguments of the forward; only a function with `setup_context` takes keywords, as in torch."""
    if not _sets_up_context(cls):
        return args
    bound = inspect.signature(cls.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args


def _tangents_present(cls: Function, context: TracedContext, differentiable: Sequence[int]) -> list[Sequence[int]]:
    """For each backward to record, the outputs that have a gradient: all, or each subset if absent ones are None."""
    if not differentiable:
        return []
    if context.materialize_grads or len(differentiable) == 1:
        return [differentiable]
    if len(differentiable) > _MOST_ABSENT:
        raise CaptureError(
            "E0227",
            f'"{cls.__qualname__}" has {len(differentiable)} outputs and takes None for the gradients of unused ones',
            expected=f"at most {_MOST_ABSENT} outputs under ctx.set_materialize_grads(False)",
            help="leave ctx.set_materialize_grads out: absent gradients are zeros then",
        )
    sizes = range(len(differentiable), 0, -1)
    return [subset for size in sizes for subset in combinations(differentiable, size)]


def _sets_up_context(cls: Function) -> bool:
    return cls.setup_context is not _SingleLevelFunction.setup_context


def _forward(cls: Function, context: TracedContext, values: Sequence[Any]) -> Any:
    if not _sets_up_context(cls):
        return cls.forward(context, *values)
    result = cls.forward(*values)
    cls.setup_context(context, tuple(values), result)
    return result


def _backward(
    cls: Function, context: TracedContext, tangents: Sequence[Tensor | None], args: Sequence[Any]
) -> list[Tensor | None]:
    """The gradient of each argument; None for those that need none. Errors: E0220, E0224, E0227."""
    name = cls.__qualname__
    try:
        returned = _user_backward(cls)(context, *tangents)
    except CaptureError:
        raise
    except RAISED_BY_USER_CODE as error:
        raise error_in_backward(name, error) from None
    gradients = list(returned) if isinstance(returned, tuple) else [returned]
    if len(gradients) < len(args) or any(gradient is not None for gradient in gradients[len(args) :]):
        raise _wrong(
            name, f"{len(gradients)} gradients for {len(args)} inputs", "one gradient, or None, for each input"
        )
    pairs = zip(args, gradients, context.needs_input_grad, strict=False)
    return [_checked(name, index, *pair) for index, pair in enumerate(pairs)]


def _user_backward(cls: Function) -> Callable[..., Any]:
    base = torch.autograd.Function
    return cls.vjp if cls.vjp is not base.vjp else cls.backward


def _checked(name: str, index: int, argument: Any, gradient: Any, needed: bool) -> Tensor | None:
    """The gradient of one argument, refused if autograd would refuse it."""
    if not needed or gradient is None:
        return None
    if not isinstance(gradient, Tensor):
        raise _wrong(name, f'a value of type "{type(gradient).__name__}" for input {index}', "a tensor, or None")
    shape, expected = tuple(gradient.shape), tuple(argument.shape)
    if shape != expected and not _sums_to(shape, expected):
        raise _wrong(name, f"a gradient of shape {shape} for input {index}", f"its shape {expected}")
    return gradient


def _sums_to(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether autograd sums a gradient to the shape of its input, as if it had been broadcast."""
    if len(shape) < len(expected):
        return False
    tail = shape[len(shape) - len(expected) :]
    return all(wanted in (1, extent) for extent, wanted in zip(tail, expected, strict=True))


def _wrong(name: str, found: str, expected: str) -> CaptureError:
    return CaptureError(
        "E0224",
        f'the backward of "{name}" returns {found}',
        expected=expected,
        help="call backward once without Stretto; autograd refuses it too",
    )


def _has_gradient(output: Any, context: TracedContext) -> bool:
    """Whether an output gets a tangent."""
    marked = any(output is tensor for tensor in context.non_differentiable)
    return isinstance(output, Tensor) and not marked and (output.is_floating_point() or output.is_complex())


def _autocast_off() -> Any:
    """Inside, no autocast region of the forward is active: a backward runs after them."""
    if not torch.is_autocast_enabled("cpu"):
        return nullcontext()
    return torch.autocast("cpu", enabled=False)
