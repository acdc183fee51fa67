"""A compiled model: finds the program for each call or compiles one; keeps RNG state and unreduced gradients."""

from __future__ import annotations

import logging
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
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
from ...runtime.processes.world import call as collective_call
from ...runtime.program.named_sizes import range_text
from ...runtime.program.program import Program
from ...runtime.rank import nan_watch
from ...runtime.rank.autograd import Accumulation
from ...runtime.rank.unreduced_gradients import UnreducedGradients
from ..compile.request import Found, Observer
from ..text.phases import Display, phases_shown
from .call_details import CallDetails
from .distribution import check_same_inputs, is_first_process, processes
from .local_parts import with_parts
from .module_tensors import ModuleTensors, TensorCollector
from .optimizer_guards import note_unreduced
from .program_cache import ProgramCache, why_other_program
from .rng_state import ModelRngState
from .variants import Key, Origin, Variant, key_of, make_variant, mode_of

PLAN_ATTRIBUTE = "__stretto_plan__"
"""The attribute of a compiled class that holds its plan."""
DYNAMIC_ATTRIBUTE = "__stretto_dynamic__"
"""The attribute that holds which dims of its inputs are dynamic."""
STATES_ATTRIBUTE = "__stretto_states__"
"""The attribute that holds globs over the buffers that are states."""
MAX_FAMILIES = 32
"""Keys, named sizes left out, for which programs with named sizes are kept."""
MAX_TRIES = 2
"""After this many failures to find a program with named sizes, every other size is compiled by itself."""

_log = logging.getLogger("stretto")
_tracing: ContextVar[bool] = ContextVar("stretto_tracing", default=False)


class CompiledModule:
    """The programs of one model. It does not hold the model: every call passes it.

    Inputs with dynamic dims need not divide by their ranks; with `pads` no input needs to.
    """

    def __init__(
        self, plan: Plan, dynamic: DynamicSpec | None = None, *, pads: bool = False, states: tuple[str, ...] = ()
    ) -> None:
        self._plan = plan
        self._pads = pads
        self._states = states
        self._dims = DynamicDims.of(dynamic)
        self._collector = TensorCollector()
        self._programs = ProgramCache()
        self._with_sizes: dict[Key, list[Variant]] = {}
        """Variants with named sizes, by their key without those sizes."""
        self._without_sizes: Counter[Key] = Counter()
        """How often no program with named sizes was found."""
        self._unreduced_gradients = UnreducedGradients()
        self._keeps_unreduced = False
        self.rng_state = ModelRngState()

    def call(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """`model(*args, **kwargs)` on all ranks; compiles where no program serves this call."""
        variant, outputs, call = self._run(model, args, kwargs)
        return variant.result(outputs, call)

    def step(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], scale: float) -> Tensor:
        """The loss of a call; adds the gradient of `scale * loss` to `.grad`. See `model.step` in `decorator.py`."""
        with torch.enable_grad():
            variant, outputs, _ = self._run(model, args, kwargs, Mode.TRAIN, scale)
            losses = [outputs[index] for index in variant.losses]
            if len(losses) != 1 or losses[0].dim() or not losses[0].requires_grad:
                raise StrettoError(
                    "E0617",
                    f"step() was called on a {type(model).__name__} whose forward returns {_losses_text(losses)}",
                    expected="a forward that returns one scalar loss, alone or among other results, that depends on "
                    "a parameter with requires_grad",
                    help="compute the loss inside the model's forward, or call the model and loss.backward()",
                )
            [loss] = losses
            # A pipeline's backwards run inside the forward and have applied the scale already.
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
    ) -> tuple[Variant, list[Tensor], BoundCall]:
        """The variant for a call, its outputs, and the call; without `mode`, grad mode and train mode decide it."""
        details = CallDetails()
        with collective_call(f"forward of {type(model).__name__}", details):
            return self._run_call(model, args, kwargs, mode, scale, details)

    def _run_call(
        self,
        model: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        mode: Mode | None,
        scale: float,
        details: CallDetails,
    ) -> tuple[Variant, list[Tensor], BoundCall]:
        own = self._collector.collect(model)
        call = with_parts(bind_call(model, args, kwargs, own.named), self._plan, processes())
        tensors = own.with_buffers(call.buffers)
        # The first step outside no_sync adds its gradients to the unreduced ones, and all are reduced once.
        delayed = self._keeps_unreduced or bool(self._unreduced_gradients)
        if delayed:
            note_unreduced(self._unreduced_gradients, tensors.parameters.values())
        key = key_of(tensors, call, mode or mode_of(tensors, call, self._plan), delayed=delayed)
        details.key, details.names = key, call.names
        variant = self._programs.find(key, tensors.modules) or self._add(key, model, tensors, call)
        if nan_watch.is_detecting() and isinstance(variant.session, ProcessRank):
            check_same_inputs(call, variant.session.world)
        if variant.program.of_kind("random"):
            self.rng_state.advance(variant.session)
        accumulation = Accumulation(self._unreduced_gradients, delivers=not self._keeps_unreduced)
        return variant, variant.call(tensors, call.tensors, accumulation, scale), call

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, the gradients of forwards stay unreduced on their ranks."""
        delayed, self._keeps_unreduced = self._keeps_unreduced, True
        try:
            yield
        finally:
            self._keeps_unreduced = delayed

    def discard(self) -> None:
        """Drop the unreduced gradients."""
        self._unreduced_gradients.clear()

    def has_program(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call would run a program that is there, in the state in which model and torch are now."""
        own = self._collector.collect(model)
        call = with_parts(bind_call(model, args, kwargs, own.named), self._plan, processes())
        tensors = own.with_buffers(call.buffers)
        key = key_of(tensors, call, mode_of(tensors, call, self._plan))
        return self._programs.find(key, tensors.modules) is not None

    def share_program(self, other: CompiledModule, copy: nn.Module) -> None:
        """Let `other`, of a `copy` of this model, run the program that was called last, on rank threads of its own."""
        if self.last is not None and (key := self._programs.last_key) is not None:
            own = replace(key, classes=other._collector.collect(copy).classes)  # a copy of a view has its own class
            other._programs.add(own, self.last.on_other_ranks())

    @property
    def plan(self) -> Plan:
        """The plan that its programs are compiled under."""
        return self._plan

    @property
    def has_unreduced_gradients(self) -> bool:
        """Whether gradients are not reduced yet."""
        return bool(self._unreduced_gradients)

    @property
    def last(self) -> Variant | None:
        """The variant that was called last."""
        return self._programs.last

    def _add(self, key: Key, model: nn.Module, tensors: ModuleTensors, call: BoundCall) -> Variant:
        start = time.perf_counter()
        sizes = self._dims.in_call(call)
        shared = key.without(sizes)
        family = self._with_sizes.setdefault(shared, []) if sizes else []
        valid = [variant for variant in family if variant.read.are_unchanged(tensors.modules)]
        values = {name: size.size for name, size in sizes.items()}
        variant = next(filter(None, (variant.bound(tensors, call, values) for variant in valid)), None)
        what, why = f"bound to {_listed(values)}", self._programs.why_compiled(key)
        if variant is None:
            why = "; ".join([why, *why_other_program(key, self._programs.last_key, call, self._dims, valid, values)])
            with _trace():
                tries = self._without_sizes[shared] < MAX_TRIES
                inside = {name: size for name, size in sizes.items() if tries and size.range.holds(size.size)}
                origin = Origin("" if self.last is None else why, None if self.last is None else self.last.session)
                padded = call.names if self._pads else tuple(self._dims.dims)
                with phases_shown(type(model).__name__, None if is_first_process() else Display.NONE) as begin:
                    observer = Observer(begin)
                    made = make_variant(
                        model, tensors, call, key, self._plan, inside, padded, origin, observer, self._states
                    )
            variant, found = made.variant, made.sizes
            what = "compiled" if found is None else f"compiled {found.compilations} times"
            what = "taken from the cache" if made.is_cached else what
            if found is not None:
                why += _sizes_text(found)
                self._without_sizes[shared] += found.symbolic is None
            if variant.program.symbolic is not None:
                family.append(variant)
            if len(self._with_sizes) > MAX_FAMILIES:
                self._with_sizes.pop(next(iter(self._with_sizes)))
        self._programs.add(key, variant)
        seconds = time.perf_counter() - start
        _log.info("%s %s (%s) in %.3g s: %s", type(model).__name__, what, key.mode, seconds, why)
        return variant


def _losses_text(losses: Sequence[Tensor]) -> str:
    if not losses or not any(result.requires_grad for result in losses):
        return "no tensor with requires_grad"
    return "results of shapes " + ", ".join(str(list(result.shape)) for result in losses)


def _sizes_text(result: Found) -> str:
    """For the log: the sizes that a program is valid for, or why it is valid for its own sizes only."""
    if result.symbolic is None:
        return f"; every size is compiled for itself, because {result.why_not}"
    ranges = [f"{size.name} {range_text(size.low, size.high)}" for size in result.symbolic.names]
    return f"; for {', '.join([*ranges, *result.symbolic.guards])}"


def _listed(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


_compiled: weakref.WeakKeyDictionary[nn.Module, CompiledModule] = weakref.WeakKeyDictionary()
"""Kept beside the models, so that copies and pickles of a model carry no threads and start without programs."""


def compiled_module(model: nn.Module) -> CompiledModule:
    """The `CompiledModule` of a model of a compiled class."""
    module = _compiled.get(model)
    if module is None:
        module = _compiled[model] = CompiledModule(
            getattr(type(model), PLAN_ATTRIBUTE),
            getattr(type(model), DYNAMIC_ATTRIBUTE, None),
            states=getattr(type(model), STATES_ATTRIBUTE, ()),
        )
    return module


def random_state(model: nn.Module) -> RngState:
    """The RNG state (seed, step) of the next forward of a compiled model that draws, as dropout does in training.

    Saved in a checkpoint and given to `set_random_state` later, it continues the same sequence of random numbers.
    """
    return compiled_module(model).rng_state.state


def set_random_state(model: nn.Module, state: RngState) -> None:
    """Set the RNG state of the next forward that draws; later ones use the next steps, until torch's seed changes.

    `dataclasses.replace(random_state(model), step=0)` repeats the random numbers from the start.
    """
    compiled_module(model).rng_state.state = state


def is_compiled(model: nn.Module) -> bool:
    """Whether Stretto runs the model's calls."""
    return hasattr(type(model), PLAN_ATTRIBUTE)


def is_tracing() -> bool:
    """Whether a model is being captured: then compiled models inside it run as plain modules."""
    return _tracing.get()


@contextmanager
def _trace() -> Iterator[None]:
    token = _tracing.set(True)
    try:
        yield
    finally:
        _tracing.reset(token)


def program_of(model: nn.Module) -> Program:
    """The program of the model's last call, to explain or to save. Raises StrettoError E0602 before the first call."""
    compiled = is_compiled(model)
    variant = compiled_module(model).last if compiled else None
    if variant is None:
        raise StrettoError(
            "E0602",
            f"this {type(model).__name__} has no program: it was {'not called yet' if compiled else 'never compiled'}",
            help="call it once: the first call compiles a program"
            if compiled
            else "compile it: model = stretto.compile(model, plan=...)",
        )
    return variant.program
