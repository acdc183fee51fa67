"""Faults that no command saw, of a fourth set: configs, plans, steps, calls without gradients, losses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from stretto.driver.model import compiled_module, variants
from stretto.driver.model.rng_state import ModelRngState
from stretto.dsl import parser, resolve_values
from stretto.dsl.plan import Plan
from stretto.dsl.precision import Precision
from stretto.dsl.shard import Role
from stretto.frontend.capture import traced
from stretto.frontend.targets import hugging_face
from stretto.passes.pipelining import average_microbatches

from .finding import Finder
from .source_faults import Plant, SourceFault, Wrong, around, entry, value
from .users_models import Case

CALLS, DROPS, NORMS = Case("calls", "dp", ()), Case("draws", "dp", ()), Case("norms", "dp", ())


def fault(where: str, plant: Plant, case: Case, found_by: Finder = Finder.COMPILE_CHECK) -> SourceFault:
    return SourceFault(where, plant, found_by, case)


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


def first_role(plan: Plan, name: str) -> Role | None:
    """The role of an input by the first statement that names it."""
    return next((s.layout for s in plan.inputs if isinstance(s.layout, Role) and s.covers(name)), None)


def reduced_as_computed(right: Wrong) -> Wrong:
    """The statement as read, with `compute` where `reduce` is left out."""

    def wrong(*args: Any) -> Precision:
        stated: Precision = right(*args)
        return replace(stated, reduce=stated.reduce or stated.compute)

    return wrong


def steps_follow_each_other(right: Wrong) -> Wrong:
    """Microbatch m of step s draws as forward s + m, and so what microbatch m - 1 of the next step draws."""
    pipeline = SimpleNamespace(pipeline=SimpleNamespace(microbatches=1))
    return lambda average, emitter, state: right(pipeline, emitter, state)


def without_falsy(right: Wrong) -> Wrong:
    """The config without its values that are false, zero or empty."""
    return lambda library, file, data: right(library, file, {key: value for key, value in data.items() if value})


ALONE_FAULTS = {
    "microbatches of neighbouring steps draw the same random numbers": fault(
        "passes/pipelining/average_microbatches: _own_rng_state",
        around(average_microbatches._Average, "_own_rng_state", steps_follow_each_other),
        Case("gpt", "alone", ()),
        Finder.VERIFY_TARGET,
    ),
    "values of a config that are zero are its class's defaults": fault(
        "frontend/targets/hugging_face: _config",
        around(hugging_face, "_config", without_falsy),
        Case("hf:gpt2", "inner", ()),
    ),
    "the first statement that names an input says whether it is the batch": fault(
        "dsl/resolve_values: stated_role", value(resolve_values, "stated_role", first_role), Case("table", "whole", ())
    ),
    "gradients are reduced in the dtype of compute where reduce is left out": fault(
        "dsl/precision: read_precision",
        entry(parser.READERS, "precision", reduced_as_computed(parser.READERS["precision"])),
        Case("calls", "short", ()),
    ),
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
