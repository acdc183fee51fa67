"""What a compiled model keeps between calls: its plan, and a program for each kind of call that it has seen."""

from __future__ import annotations

import logging
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...frontend.capture.call import BoundCall, bind_call
from ...frontend.captured import Mode
from ...frontend.dynamic_sizes.dynamic_dims import DynamicDims, DynamicSpec
from ...runtime.philox import RngState
from ...runtime.processes.session import ProcessRank
from ...runtime.program.named_sizes import range_text
from ...runtime.program.program import Program
from ...runtime.rank import nan_watch
from ...runtime.rank.autograd import Accumulation
from ...runtime.rank.unreduced_gradients import UnreducedGradients
from ..compile.dynamic_sizes import Found
from .distribution import check_same_inputs, processes
from .kept_programs import KeptPrograms, why_sizes
from .local_parts import with_parts
from .module_tensors import Held, Holder
from .optimizer_guards import note_waiting
from .rng_state import Draws
from .variants import Key, Origin, Variant, key_of, make_variant, mode_of

PLAN_ATTRIBUTE = "__stretto_plan__"
"""Where a compiled class keeps its plan."""
DYNAMIC_ATTRIBUTE = "__stretto_dynamic__"
"""Where it keeps which dims of its inputs are dynamic."""
MAX_FAMILIES = 32
"""Kinds of calls for which programs with named sizes are kept."""
MAX_TRIES = 2
"""After so many calls for which no program with named sizes was found, each other size is just compiled."""

_log = logging.getLogger("stretto")
_tracing: ContextVar[bool] = ContextVar("stretto_tracing", default=False)


class CompiledModule:
    """The programs of one model. It does not hold the model, which is given at every call.

    Inputs with dynamic dims need not divide by their ranks, and no input has to where the caller `pads`.
    """

    def __init__(self, plan: Plan, dynamic: DynamicSpec | None = None, *, pads: bool = False) -> None:
        self._plan = plan
        self._pads = pads
        self._dims = DynamicDims.of(dynamic)
        self._holder = Holder()
        self._kept = KeptPrograms()
        self._with_sizes: dict[Key, list[Variant]] = {}
        """Those whose programs have named sizes, by what their calls have in common."""
        self._without_sizes: Counter[Key] = Counter()
        """How often none was found."""
        self._addends = UnreducedGradients()
        self._delays = False
        self.draws = Draws()

    def call(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """`model(*args, **kwargs)` on all ranks; compiles at the first call of its kind."""
        variant, outputs = self._run(model, args, kwargs)
        return variant.result(outputs)

    def step(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], scale: float) -> Tensor:
        """The loss of a call, whose gradient times `scale` is added to `.grad`; see `model.step` in `decorator.py`."""
        with torch.enable_grad():
            variant, outputs = self._run(model, args, kwargs, Mode.TRAIN, scale)
            losses = [outputs[at] for at in variant.losses]
            if len(losses) != 1 or losses[0].dim() or not losses[0].requires_grad:
                raise StrettoError(
                    "E0617",
                    f"step() was called of a {type(model).__name__} whose forward gives {_losses_text(losses)}",
                    expected="a forward whose result is a scalar loss, or holds one, that depends on a parameter "
                    "which requires a gradient",
                    help="compute the loss inside the model's forward, or call the model and loss.backward()",
                )
            [loss] = losses
            # A pipeline's forward began its backwards with the scale already.
            tangent = 1.0 if variant.program.pipeline is not None else scale
            torch.autograd.backward(loss, torch.full_like(loss, tangent))
        return loss.detach()

    def _run(
        self,
        model: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        mode: Mode | None = None,
        scale: float = 1.0,
    ) -> tuple[Variant, list[Tensor]]:
        """The program for a call, and its outputs; `mode` is what grad mode and train mode say where none is given."""
        call = with_parts(bind_call(model, args, kwargs), self._plan, processes())
        held = self._holder.look(model)
        # While gradients wait, the step that ends the waiting adds its own to them, and all are reduced once.
        delayed = self._delays or bool(self._addends)
        if delayed:
            note_waiting(self._addends, held.parameters.values())
        key = key_of(held, call, mode or mode_of(held, call, self._plan), delayed=delayed)
        variant = self._kept.find(key, held.modules) or self._add(key, model, held, call)
        if nan_watch.is_detecting() and isinstance(variant.session, ProcessRank):
            check_same_inputs(call, variant.session.world)
        if variant.program.of_kind("random"):
            self.draws.advance(variant.session)
        accumulation = Accumulation(self._addends, delivers=not self._delays)
        return variant, variant.call(held, call.tensors, accumulation, scale)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, the gradients of forwards wait on their ranks instead of being reduced over them."""
        delayed, self._delays = self._delays, True
        try:
            yield
        finally:
            self._delays = delayed

    def discard(self) -> None:
        """Forget the gradients that wait for a reduction."""
        self._addends.clear()

    @property
    def plan(self) -> Plan:
        """What its programs are compiled under."""
        return self._plan

    @property
    def waits(self) -> bool:
        """Whether gradients wait for a reduction."""
        return bool(self._addends)

    @property
    def last(self) -> Variant | None:
        """The variant that was called last."""
        return self._kept.last

    def _add(self, key: Key, model: nn.Module, held: Held, call: BoundCall) -> Variant:
        began = time.perf_counter()
        sizes = self._dims.in_call(call)
        shared = key.without(sizes)
        family = self._with_sizes.setdefault(shared, []) if sizes else []
        alike = [each for each in family if each.read.hold(held.modules)]
        values = {name: each.size for name, each in sizes.items()}
        made = next(filter(None, (each.bound(held, call, values) for each in alike)), None)
        what, why = f"bound to {_listed(values)}", self._kept.why_another(key)
        if made is None:
            why = "; ".join([why, *why_sizes(key, self._kept.last_key, call, self._dims, alike, values)])
            with _trace():
                tries = self._without_sizes[shared] < MAX_TRIES
                inside = {name: each for name, each in sizes.items() if tries and each.range.holds(each.size)}
                origin = Origin("" if self.last is None else why, None if self.last is None else self.last.session)
                padded = call.names if self._pads else tuple(self._dims.dims)
                made, found = make_variant(model, held, call, key, self._plan, inside, padded, origin)
            what = "compiled"
            if found is not None:
                what += f" {found.compilations} times"
                why += _told(found)
                self._without_sizes[shared] += found.symbolic is None
            if made.program.symbolic is not None:
                family.append(made)
            if len(self._with_sizes) > MAX_FAMILIES:
                self._with_sizes.pop(next(iter(self._with_sizes)))
        self._kept.add(key, made)
        seconds = time.perf_counter() - began
        _log.info("%s %s (%s) in %.3g s: %s", type(model).__name__, what, key.mode, seconds, why)
        return made


def _losses_text(losses: Sequence[Tensor]) -> str:
    if not losses or not any(each.requires_grad for each in losses):
        return "nothing that could be differentiated"
    return "results of shapes " + ", ".join(str(list(each.shape)) for each in losses)


def _told(found: Found) -> str:
    """For which sizes a program holds, or why for its own alone."""
    if found.symbolic is None:
        return f"; every size is compiled for itself, because {found.why_not}"
    ranges = [f"{each.name} {range_text(each.low, each.high)}" for each in found.symbolic.names]
    return f"; for {', '.join([*ranges, *found.symbolic.guards])}"


def _listed(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


_compiled: weakref.WeakKeyDictionary[nn.Module, CompiledModule] = weakref.WeakKeyDictionary()
"""By model, and not in it: so copies and pickles of a model carry no threads, and start with no program."""


def compiled_module(model: nn.Module) -> CompiledModule:
    """What Stretto keeps for a model of a compiled class."""
    found = _compiled.get(model)
    if found is None:
        found = _compiled[model] = CompiledModule(
            getattr(type(model), PLAN_ATTRIBUTE), getattr(type(model), DYNAMIC_ATTRIBUTE, None)
        )
    return found


def random_state(model: nn.Module) -> RngState:
    """Seed and step that the next forward of a compiled model which draws (a dropout in training) will draw from.

    What is kept of it in a checkpoint and given to `set_random_state` later continues with the numbers due next.
    """
    return compiled_module(model).draws.state


def set_random_state(model: nn.Module, state: RngState) -> None:
    """Let the next forward that draws use `state`, and those after it the next steps, until torch has another seed.

    `dataclasses.replace(random_state(model), step=0)` makes it repeat the numbers from the beginning.
    """
    compiled_module(model).draws.state = state


def is_compiled(model: nn.Module) -> bool:
    """Whether Stretto runs the model's calls."""
    return hasattr(type(model), PLAN_ATTRIBUTE)


def is_tracing() -> bool:
    """Whether a model is being captured: then compiled models inside it run as plain ones."""
    return _tracing.get()


@contextmanager
def _trace() -> Iterator[None]:
    token = _tracing.set(True)
    try:
        yield
    finally:
        _tracing.reset(token)


def program_of(model: nn.Module) -> Program:
    """The program that the model's last call ran, to explain or to save. Raises StrettoError E0602 before any call."""
    compiled = is_compiled(model)
    variant = compiled_module(model).last if compiled else None
    if variant is None:
        raise StrettoError(
            "E0602",
            f"this {type(model).__name__} has no program: it was {'not called yet' if compiled else 'never compiled'}",
            help="call it once: a program is made at the first call"
            if compiled
            else "wrap it: model = stretto.compile(model, plan=...)",
        )
    return variant.program
