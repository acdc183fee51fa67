"""Refuse a forward that seeds torch's generator, or sets its state.

A compiled model draws by the seed and the step of its random state and by the place of each element; a seed that is set
inside the forward would have no part in it. `torch.random.fork_rng` and checkpoints, which set a state that they have
read, are left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from ...diagnostics import Span
from ..captured import CaptureError
from ..metadata import forward_span, is_users_file, line_span

_SEEDING = ("manual_seed", "seed", "set_rng_state")
"""Functions of torch, which it has in `torch.random` too."""


@contextmanager
def seeding_refused(model: nn.Module) -> Iterator[None]:
    """Inside, E0228 is raised at the user's line where torch's generator is seeded; at the forward, where it is only
    seen afterwards that a method of the generator did it.
    """
    seed = torch.initial_seed()
    replaced = [(holder, name, getattr(holder, name)) for holder in (torch, torch.random) for name in _SEEDING]
    try:
        for holder, name, function in replaced:
            setattr(holder, name, _refusing(name, function, model))
        yield
        if torch.initial_seed() != seed:
            raise _refusal("seeds torch's generator", forward_span(model))
    finally:
        for holder, name, function in replaced:
            setattr(holder, name, function)


def _refusing(name: str, function: Callable[..., Any], model: nn.Module) -> Callable[..., Any]:
    @wraps(function)
    def refuse(*args: Any, **kwargs: Any) -> Any:
        if name == "set_rng_state" and not is_users_file(sys._getframe(1).f_code.co_filename):
            return function(*args, **kwargs)
        frame = sys._getframe(1)
        while frame.f_back is not None and not is_users_file(frame.f_code.co_filename):
            frame = frame.f_back
        span = line_span(frame.f_code.co_filename, frame.f_lineno) or forward_span(model)
        raise _refusal(f"calls torch.{name}", span)

    return refuse


def _refusal(does: str, span: Span | None) -> CaptureError:
    return CaptureError(
        "E0228",
        f"forward {does}, which a compiled model does not: it draws by the seed and step of its call",
        span=span,
        help="do it before the model is called; a compiled model draws other numbers at every step, and the same after"
        " torch.manual_seed",
    )
