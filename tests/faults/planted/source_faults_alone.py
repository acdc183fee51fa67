"""Faults that no command saw, of a fourth set: calls without gradients, dropped gradients, several losses."""

from __future__ import annotations

from typing import Any

import torch
from stretto.driver.model import compiled_module, variants
from stretto.driver.model.rng_state import ModelRngState
from stretto.frontend.capture import traced

from .finding import Finder
from .source_faults import Plant, SourceFault, Wrong, around, value
from .users_models import Case

CALLS, DROPS, NORMS = Case("calls", "dp", ()), Case("draws", "dp", ()), Case("norms", "dp", ())


def fault(where: str, plant: Plant, case: Case) -> SourceFault:
    return SourceFault(where, plant, Finder.COMPILE_CHECK, case)


def no_step_without_grad(right: Wrong) -> Wrong:
    """Without gradients, forwards take the random numbers that their session has."""
    return lambda state, session: right(state, session) if torch.is_grad_enabled() else None


def no_buffers_without_grad(right: Wrong) -> Wrong:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        outputs, changed = right(*args, **kwargs)
        return outputs, changed if torch.is_grad_enabled() else {}

    return wrong


def first_loss_alone(right: Wrong) -> Wrong:
    """Of several losses the first may be differentiated."""
    return lambda outputs: right(outputs)[:1]


ALONE_FAULTS = {
    "model.zero_grad keeps the gradients that wait for a reduction": fault(
        "driver/model/decorator: zero_grad",
        value(compiled_module.CompiledModule, "discard", lambda module: None),
        CALLS,
    ),
    "forwards without gradients draw the same random numbers": fault(
        "driver/model/rng_state: advance", around(ModelRngState, "advance", no_step_without_grad), DROPS
    ),
    "forwards without gradients do not write buffers": fault(
        "driver/model/variants: call", around(variants, "run", no_buffers_without_grad), NORMS
    ),
    "of several losses the first may be differentiated": fault(
        "frontend/capture/traced: _differentiable", around(traced, "_differentiable", first_loss_alone), NORMS
    ),
}
