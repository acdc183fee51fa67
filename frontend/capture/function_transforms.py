"""Name the function transform (`torch.vmap`, `torch.func.grad`) behind an error that torch words as something else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch._functorch import apis, eager_transforms

from ...diagnostics import Span
from ..captured import CaptureError
from ..metadata import is_users_file, line_span

_TRANSFORMS: tuple[tuple[Any, str, str], ...] = (
    (apis, "vmap_impl", "torch.vmap"),
    (eager_transforms, "grad_impl", "torch.func.grad"),
    (eager_transforms, "grad_and_value_impl", "torch.func.grad_and_value"),
    (eager_transforms, "_vjp_with_argnums", "torch.func.vjp"),
    (eager_transforms, "_jvp_with_argnums", "torch.func.jvp"),
)
"""The module and the name of the function that does each transform."""
_DEPTH = 6
"""Frames between a transform and the line that calls it: torch's own wrappers, not a library's."""
_VAGUE = ("E0216", "E0220", "E0227", "E0228")
"""Errors that a transform may be the cause of, and that do not say so."""


Transforms = dict[str, Span | None]
"""The transforms that a forward has called, with the user's lines."""


@contextmanager
def transforms_named(calls: Transforms) -> Iterator[None]:
    """Inside, an error of capture that a transform in a user's line may have caused names it, with that line.

    `calls` has those of the forward where the context is for its backward; calls inside are added.
    """
    originals = [(module, name, getattr(module, name)) for module, name, _ in _TRANSFORMS if hasattr(module, name)]
    shown = {name: public for _, name, public in _TRANSFORMS}
    try:
        for module, name, original in originals:
            setattr(module, name, _recording(original, shown[name], calls))
        yield
    except CaptureError as error:
        if error.code not in _VAGUE or not calls:
            raise
        transform, span = next(iter(calls.items()))
        raise CaptureError(
            error.code,
            f'the forward calls "{transform}", which torch\'s export does not trace here',
            span=span,
            notes=((f"seen without that call: {error.message}", None),),
            help="write it with ops on whole tensors: a batched product for a vmap, a loss and its backward for a grad",
        ) from None
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def _recording(function: Callable[..., Any], name: str, calls: Transforms) -> Callable[..., Any]:
    """The function, whose calls from a user's file are noted."""

    @wraps(function)
    def record(*args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        for _ in range(_DEPTH):
            if is_users_file(frame.f_code.co_filename):
                calls.setdefault(name, line_span(frame.f_code.co_filename, frame.f_lineno))
                break
            if frame.f_back is None:
                break
            frame = frame.f_back
        return function(*args, **kwargs)

    return record
