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

from ..captured import CaptureError
from ..metadata import forward_span, is_users_file, line_span

_SEEDING = ("manual_seed", "seed", "set_rng_state")
"""Functions of torch, which it has in `torch.random` too."""


@contextmanager
def seeding_refused(model: nn.Module) -> Iterator[None]:
    """Inside, E0228 is raised at the user's line where torch's generator is seeded."""
    replaced = [(holder, name, getattr(holder, name)) for holder in (torch, torch.random) for name in _SEEDING]
    try:
        for holder, name, function in replaced:
            setattr(holder, name, _refusing(name, function, model))
        yield
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
        raise CaptureError(
            "E0228",
            f"forward calls torch.{name}, which a compiled model does not: it draws by the seed and step of its call",
            span=line_span(frame.f_code.co_filename, frame.f_lineno) or forward_span(model),
            help="call it before the model; a compiled model draws other numbers at every step, and the same after"
            " torch.manual_seed",
        )

    return refuse
