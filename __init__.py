"""Stretto: a graph compiler for parallel execution plans. This folder is the package `stretto`.

`compile` (a model or its class), `Plan` (what to do where), `program_of` (what ran), `StrettoError` (what was wrong),
`PlanWarning` (what a plan says to no effect); for training under any plan `local`, `clip_grad_norm_`,
`detect_anomaly`, `save_checkpoint` and `load_checkpoint`, `save_weights` and `load_weights`, `meta_parameters`,
`random_state` and `set_random_state`; `trace` (what ranks run when); `allow_ops` for custom ops;
`register_implementation` (an `Implementation` of a kind) and `use_implementations` (those of a package); `load_program`
(a folder, as a `LoadedProgram` for scripts) and `save_programs` (entries of a model as one folder).
Each is imported when it is first used, so that the base install runs programs without the compiler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .diagnostics.lazy_exports import lazy_exports
from .diagnostics.version import __version__

if TYPE_CHECKING:
    from .diagnostics import PlanWarning, StrettoError
    from .driver.checkpoints.checkpoints import load_checkpoint, save_checkpoint
    from .driver.model.clipping import clip_grad_norm_
    from .driver.model.compiled_module import program_of, random_state, set_random_state
    from .driver.model.decorator import compile
    from .driver.model.local_parts import local
    from .driver.model.saved_programs import save_programs
    from .driver.report.trace_file import trace
    from .driver.state.meta import meta_parameters
    from .driver.state.weights import load_weights, save_weights
    from .dsl import Plan
    from .ops.allowed import allow_ops
    from .runtime.implementations.registry import Implementation, register_implementation, use_implementations
    from .runtime.loaded_program import LoadedProgram, load_program
    from .runtime.rank.nan_watch import detect_anomaly

__all__ = [
    "Implementation", "LoadedProgram", "Plan", "PlanWarning", "StrettoError", "__version__", "allow_ops",
    "clip_grad_norm_", "compile", "detect_anomaly", "load_checkpoint", "load_program", "load_weights", "local",
    "meta_parameters", "program_of", "random_state", "register_implementation", "save_checkpoint", "save_programs",
    "save_weights", "set_random_state", "trace", "use_implementations",
]  # fmt: skip

_HOMES = {
    "Implementation": ".runtime.implementations.registry",
    "LoadedProgram": ".runtime.loaded_program",
    "Plan": ".dsl",
    "PlanWarning": ".diagnostics",
    "StrettoError": ".diagnostics",
    "allow_ops": ".ops.allowed",
    "clip_grad_norm_": ".driver.model.clipping",
    "compile": ".driver.model.decorator",
    "detect_anomaly": ".runtime.rank.nan_watch",
    "load_checkpoint": ".driver.checkpoints.checkpoints",
    "load_program": ".runtime.loaded_program",
    "load_weights": ".driver.state.weights",
    "local": ".driver.model.local_parts",
    "meta_parameters": ".driver.state.meta",
    "program_of": ".driver.model.compiled_module",
    "random_state": ".driver.model.compiled_module",
    "register_implementation": ".runtime.implementations.registry",
    "save_checkpoint": ".driver.checkpoints.checkpoints",
    "save_programs": ".driver.model.saved_programs",
    "save_weights": ".driver.state.weights",
    "set_random_state": ".driver.model.compiled_module",
    "trace": ".driver.report.trace_file",
    "use_implementations": ".runtime.implementations.registry",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
