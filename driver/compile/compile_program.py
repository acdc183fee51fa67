"""The one way from a model and a plan to a program: capture, convert, passes, lower, and named sizes.

`stretto compile`, `stretto.compile` and torch's backend all call `compile_program`. Read it from top to bottom:

1. `traced_call.py` traces the forward, with symbolic sizes where some are named;
2. `cached_programs.py` looks for the program of an equal call; where there is none, the backward is traced;
3. `frontend/to_ir.py` converts the capture to IR at level `aten`;
4. the manager runs the passes that `passes/default_pipeline.py` derives from the plan;
5. `new_program.py` lowers the module to a program, and adds what checks need;
6. `dynamic_sizes.py` compiles for a few other sizes, and finds the expressions of the named ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from ...dsl.plan import Plan
from ...frontend.capture.model_parameters import parameter_infos
from ...frontend.capture.precision import effect_of_casts
from ...frontend.captured import Capture
from ...frontend.dynamic_sizes.size_guards import NotSymbolic
from ...frontend.targets.load_target import seen_ranges
from ...frontend.to_ir import Floats, Layers, to_module
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.equivalence.random_inputs import infer_ranges
from ...ir.module import Module
from ...passes.base import Remark, RemarkKind
from ...passes.default_pipeline import PipelineConfig, default_pipeline
from ...passes.layers.fold_layers import FoldLayers
from ...passes.manager import PassManager
from ...passes.plan_effects import void_statements
from .cached_programs import CachedPrograms
from .dynamic_sizes import find_sizes
from .fitted import fitted
from .garbage import no_search_for_garbage
from .moved_experts import with_fewest_bytes
from .new_program import completed, new_program
from .pipeline_requirements import check_loss, check_states
from .request import CAPTURED, NO_OBSERVER, Compiled, CompileRequest, Found, IfStatic, Observer, Options
from .states import mark_states
from .traced_call import Captures, TracedCall, sizes_refused, static_call, traced_call
from .whole_idioms import fuses_regions, kept_kinds


def compile_program(request: CompileRequest, observer: Observer = NO_OBSERVER) -> Compiled:
    """Compile one call of a model under a plan, with the named sizes that the request has.

    Errors: CaptureError, PlanError, StrettoError E04xx where the plan does not fit the model's inputs, E0616 where a
    pipeline has no scalar loss, and E0422 where the request refuses a static program.
    """
    observer.stage("capture")
    options = replace(_with_seen_ranges(request), sizes_vary=bool(request.sizes))
    request = replace(request, options=options)
    traced = traced_call(request)
    try:
        return _compiled(request, traced, observer)
    except NotSymbolic as error:
        why = str(error)
    return _compiled(request, static_call(request, why), observer)


def _compiled(request: CompileRequest, traced: TracedCall, observer: Observer) -> Compiled:
    """Raises NotSymbolic where a call that was traced with symbols has no program for more than its own sizes."""
    if request.cache is not None:
        observer.stage("cache")
    cached = CachedPrograms(request, traced)
    found = cached.find()
    if found is not None:
        return found
    with cached.shared.failures_told():
        observer.stage("backward")
        captures = traced.captures()
        first = compile_capture(captures.own, request.model, request.plan, request.options, observer)
        if request.sizes:
            observer.stage("sizes")
            sizes = _named_sizes(captures, first, request)
            if sizes.symbolic is None and request.if_static is IfStatic.REFUSE:
                raise sizes_refused(sizes.why_not)
            program = sizes.program or first.program
            first = replace(first, program=replace(program, symbolic=sizes.symbolic), sizes=sizes)
    return cached.keep(first)


def compile_capture(
    captured: Capture, model: nn.Module, plan: Plan, options: Options, observer: Observer = NO_OBSERVER
) -> Compiled:
    """Compile a model that is captured already: one microbatch of the call, where the plan says `per microbatch`."""
    check_loss(captured, plan)

    def compile_with(plan: Plan, chosen: Sequence[Remark]) -> Compiled:
        once = partial(_compiled_once, captured, model, plan, options, observer, chosen)
        return fitted(plan, options, once)

    with _neutral_modes(), no_search_for_garbage():
        return with_fewest_bytes(plan, compile_with, sizes_vary=options.sizes_vary)


def _compiled_once(
    captured: Capture,
    model: nn.Module,
    plan: Plan,
    options: Options,
    observer: Observer,
    chosen: Sequence[Remark],
    memory_margin: int,
) -> Compiled:
    observer.stage("convert")
    owners = {info.name: str(info.owner_kind) for info in parameter_infos(model)}
    buffers = dict(model.named_buffers(remove_duplicate=False)) | dict(captured.held)
    module = to_module(captured, owners, floats=options.floats, buffers=buffers, layers=Layers.FOLDED)
    check_states(mark_states(module, options.states, elsewhere=options.states_elsewhere), plan)
    observer.stage("passes")
    ranges: dict[str, IntegerRange] = {}
    config = replace(pipeline_config(plan, options), memory_margin=memory_margin)
    manager = PassManager(default_pipeline(config), _after_each_pass(observer, ranges))
    if observer.module is not None:
        observer.module(CAPTURED, module)
    remarks = [*_of_capture(captured), *chosen, *manager.run(module)]
    effects = [(run.name, run.report.effects) for run in manager.runs]
    remarks += void_statements(plan, [("capture", effect_of_casts(captured, plan)), *effects])
    observer.stage("lower")
    program = new_program(captured, plan, options, module, remarks)
    program = completed(program, ranges, model, captured.held, captured.constants, options)
    return Compiled(program, captured.result, ranges, captured, tuple(manager.runs), decided=plan)


def _of_capture(captured: Capture) -> list[Remark]:
    """The remark of a capture that took longer than its layers let expect."""
    return [Remark("capture", RemarkKind.MISSED, captured.traced_whole)] if captured.traced_whole else []


def pipeline_config(plan: Plan, options: Options) -> PipelineConfig:
    """What the default pipeline needs to know."""
    return PipelineConfig(
        plan,
        delay_reductions=options.delay_reductions,
        follow_precision=options.floats is Floats.AS_CAPTURED,
        padded_inputs=options.padded_inputs,
        sizes_vary=options.sizes_vary,
        kinds=kept_kinds(),
        fuse_regions=fuses_regions(options.target),
    )


def _with_seen_ranges(request: CompileRequest) -> Options:
    """The options, with the ranges that the call shows of integer inputs that the caller says nothing of."""
    options = request.options
    told = options.arguments.get("inputs")
    seen = seen_ranges(dict(zip(request.call.names, request.call.tensors, strict=True)))
    inputs = {**seen, **(told if isinstance(told, Mapping) else {})}
    return replace(options, arguments={**options.arguments, "inputs": inputs})


def _named_sizes(captures: Captures, first: Compiled, request: CompileRequest) -> Found:
    """What of the program follows from the named sizes of its call."""
    symbolic = captures.symbolic
    if symbolic is None:
        return Found(None, captures.why_not)
    options = replace(request.options, keep_weights=False)

    def compiled(sizes: Mapping[str, int]) -> Compiled:
        return compile_capture(symbolic.at(sizes), request.model, request.plan, options)

    return find_sizes(request.sizes, symbolic.guards, first, compiled)


def _after_each_pass(observer: Observer, ranges: dict[str, IntegerRange]) -> Callable[[str, Module], None]:
    """After each pass: tell the observer; after `fold-layers`: infer the ranges of integer inputs."""

    def after(name: str, module: Module) -> None:
        if name == FoldLayers.name:
            ranges.update(infer_ranges(module))
        if observer.module is not None:
            observer.module(name, module)

    return after


@contextmanager
def _neutral_modes() -> Iterator[None]:
    """Passes run torch ops themselves; the caller's grad mode and autocast must not affect those."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        yield
