"""A model and a plan become a program: capture, the passes in their order, lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...backends.program.lower_program import lower_program
from ...diagnostics.version import __version__
from ...dsl.plan import Plan
from ...frontend.capture.call import bind_call
from ...frontend.capture.capture import capture_call
from ...frontend.capture.model_parameters import parameter_infos
from ...frontend.capture.precision import check_parameters, compute_dtype, effect_of_casts
from ...frontend.captured import Capture, InputKind, Mode
from ...frontend.to_ir import Floats, to_module
from ...ir.attributes import dtype_of
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.equivalence.random_inputs import infer_ranges
from ...ir.module import Module
from ...passes.base import Remark
from ...passes.layers.fold_layers import FoldLayers
from ...passes.manager import PassManager, PassRun, Step
from ...passes.normalize.cast_gradients import CastGradients
from ...passes.normalize.expand_losses import ExpandLosses
from ...passes.normalize.lower_idioms import LowerIdioms
from ...passes.normalize.put_batch_first import PutBatchFirst
from ...passes.normalize.raise_idioms import RaiseIdioms
from ...passes.normalize.raise_matmuls import RaiseMatmuls
from ...passes.normalize.simplify_views import SimplifyViews
from ...passes.normalize.split_counts import SplitCounts
from ...passes.normalize.split_means import SplitMeans
from ...passes.overlap.hoist_collectives import HoistCollectives
from ...passes.overlap.start_collectives import StartCollectives
from ...passes.overlap.use_local_statistics import UseLocalStatistics
from ...passes.partition.partition_tensors import PartitionTensors
from ...passes.pipelining.average_microbatches import AverageMicrobatches
from ...passes.pipelining.cut_stages import CutStages
from ...passes.pipelining.order_tasks import OrderTasks
from ...passes.pipelining.split_segments import SplitSegments
from ...passes.plan_effects import void_statements
from ...passes.sharding.place_arguments import PlaceArguments
from ...passes.sharding.propagate_placements import PropagatePlacements
from ...runtime.program.arguments import Json, dtype_name
from ...runtime.program.program import Manifest, Program
from .pipeline_requirements import check_loss, is_alone, one_microbatch

_SPAN = ("file", "line", "column", "length", "text")
CAPTURED = "captured"
"""What `after` is told before the first pass, in place of a pass's name."""

Progress = Callable[[str], None]
"""Told the name of each stage as it begins."""


@dataclass(frozen=True)
class Options:
    """How to compile, beside the model and the plan."""

    mode: Mode = Mode.TRAIN
    loss_only: bool = False
    """Keep of the forward's result the loss alone."""
    floats: Floats = Floats.AS_CAPTURED
    arguments: Mapping[str, Json] = field(default_factory=dict)
    """What checks need to know of the inputs: {"inputs": {name: {"high": vocabulary}}}."""
    source: Mapping[str, Json] = field(default_factory=dict)
    """Where the model came from, for the manifest."""
    keep_weights: bool = True
    """Store the model's present parameters and buffers in the program."""
    padded_inputs: tuple[str, ...] = ()
    """Inputs that need not divide by their ranks: those with dynamic dims."""
    delay_reductions: bool = False
    """Leave the parameters' gradients as the ranks' addends, for steps that accumulate before they reduce."""


@dataclass(frozen=True)
class Compiled:
    """A program and how it came to be."""

    program: Program
    capture: Capture
    runs: tuple[PassRun, ...]


def pipeline(
    plan: Plan,
    *,
    delay_reductions: bool = False,
    floats: Floats = Floats.AS_CAPTURED,
    padded_inputs: Sequence[str] = (),
) -> list[Step]:
    """The passes that a plan asks for, in order; where all floats are raised, what gradients are reduced in is too."""
    said = plan.precision.reduce if plan.precision is not None else None
    as_captured = floats is Floats.AS_CAPTURED
    average: list[Step] = [AverageMicrobatches(plan)] if is_alone(plan) else []
    cuts: list[Step] = [*average, UseLocalStatistics(plan), CutStages(plan), SplitSegments(plan)]
    stages: list[Step] = [*cuts, OrderTasks(plan, as_captured), "symbol-dce"]
    return [
        PlaceArguments(plan, ",".join(padded_inputs)),
        RaiseIdioms(),
        ExpandLosses(),
        *([SplitCounts()] if plan.pipeline is not None else []),
        SplitMeans(),
        CastGradients(said if as_captured else None),
        RaiseMatmuls(),
        *([PutBatchFirst()] if plan.pipeline is not None else []),
        SimplifyViews(),
        "canonicalize",
        FoldLayers(),
        PropagatePlacements(delay_reductions),
        PartitionTensors(),
        LowerIdioms(),
        "canonicalize,cse,symbol-dce",
        *(stages if plan.pipeline is not None else []),
        HoistCollectives(),
        StartCollectives(),
    ]


def compile_program(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    plan: Plan,
    options: Options = Options(),
    *,
    progress: Progress = lambda stage: None,
    after: Callable[[str, Module], None] | None = None,
) -> Compiled:
    """Compile one call of a model under a plan. `after` sees the module as captured, and as each pass leaves it.

    Errors: CaptureError, PlanError, and StrettoError E04xx where the plan does not fit the model's inputs.
    """
    progress("capture")
    if options.floats is Floats.AS_CAPTURED:
        check_parameters(model, plan)
    compute = compute_dtype(plan)
    call = one_microbatch(bind_call(model, args, kwargs), plan)
    captured = capture_call(model, call, mode=options.mode, loss_only=options.loss_only, compute=compute)
    return compile_capture(captured, model, plan, options, progress=progress, after=after)


def compile_capture(
    captured: Capture,
    model: nn.Module,
    plan: Plan,
    options: Options = Options(),
    *,
    progress: Progress = lambda stage: None,
    after: Callable[[str, Module], None] | None = None,
) -> Compiled:
    """Compile a model that is captured already: one microbatch of the call, where the plan says `per microbatch`.

    Raises StrettoError E0616 where a pipeline has no scalar loss.
    """
    check_loss(captured, plan)
    progress("convert")
    owners = {info.name: str(info.owner_kind) for info in parameter_infos(model)}
    buffers = dict(model.named_buffers(remove_duplicate=False))
    module = to_module(captured, owners, floats=options.floats, buffers=buffers)
    ranges: dict[str, IntegerRange] = {}

    def watch(name: str, module: Module) -> None:
        if name == FoldLayers.name:
            ranges.update(infer_ranges(module))
        if after is not None:
            after(name, module)

    steps = pipeline(
        plan,
        delay_reductions=options.delay_reductions,
        floats=options.floats,
        padded_inputs=options.padded_inputs,
    )
    manager = PassManager(steps, watch)
    progress("passes")
    if after is not None:
        after(CAPTURED, module)
    remarks = manager.run(module)
    effects = [(run.name, run.report.effects) for run in manager.runs]
    remarks += void_statements(plan, [("capture", effect_of_casts(captured, plan)), *effects])
    progress("lower")
    told = replace(options, arguments=_told(options.arguments, ranges))
    program = _program(captured, model, module, remarks, told, _judged(captured, plan, options.floats))
    if program.pipeline is not None and is_alone(plan):
        program = replace(program, pipeline=replace(program.pipeline, separate_microbatches=True))
    return Compiled(program, captured, tuple(manager.runs))


def _told(arguments: Mapping[str, Json], ranges: Mapping[str, IntegerRange]) -> dict[str, Json]:
    """What checks need to know of the inputs: what the caller said, and before that what the graph says of indices."""
    given = arguments.get("inputs")
    inputs: dict[str, dict[str, Json]] = {}
    if isinstance(given, Mapping):
        inputs.update({name: dict(about) for name, about in given.items() if isinstance(about, Mapping)})
    for name, range_ in ranges.items():
        about = inputs.setdefault(name, {})
        if range_.high is not None:
            about["high"] = range_.high
        if range_.low:
            about["low"] = range_.low
        if range_.ignored is not None:
            about["ignore_index"] = range_.ignored
    return {**arguments, "inputs": inputs}


def _program(
    captured: Capture,
    model: nn.Module,
    module: Module,
    remarks: Sequence[Remark],
    options: Options,
    judged: torch.dtype,
) -> Program:
    lowered = lower_program(module)
    manifest = Manifest(
        mode=str(captured.mode),
        dtype=dtype_name(judged),
        mesh=lowered.mesh,
        stretto=__version__,
        torch=torch.__version__,
        arguments=options.arguments,
        source=options.source,
    )
    program = Program(
        manifest,
        lowered.inputs,
        lowered.outputs,
        lowered.functions,
        lowered.locations,
        ir=module.text(),
        remarks=[remark_json(r) for r in remarks],
        reference=captured.reference,
        initial=_initial(captured, model, options),
        pipeline=lowered.pipeline,
    )
    return program.validated


def _judged(captured: Capture, plan: Plan, floats: Floats) -> torch.dtype:
    """The dtype that results are judged in: the coarsest that a value has, or that gradients are reduced in."""
    nodes = pytree.tree_leaves([node.meta.get("val") for node in captured.graph.graph.nodes])
    values = [value.dtype for value in nodes if isinstance(value, Tensor) and value.dtype.is_floating_point]
    reduced = dtype_of(plan.precision.reduce) if plan.precision is not None and captured.mode is Mode.TRAIN else None
    found = dict.fromkeys(
        [*([reduced] if reduced else []), *(t.dtype for t in captured.inputs if t.dtype.is_floating_point), *values]
    )
    return floats.of(max(found, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32))


def _initial(captured: Capture, model: nn.Module, options: Options) -> dict[str, Tensor]:
    """Values by name: the graph's own constants always, the model's parameters and buffers when they are kept."""
    values: dict[str, Tensor] = dict(captured.constants)
    if options.keep_weights:
        held = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
        wanted = (t.name for t in captured.inputs if t.kind in (InputKind.PARAMETER, InputKind.BUFFER))
        values |= {name: held[name].detach() for name in wanted}
    return {name: v.to(options.floats.of(v.dtype)) for name, v in values.items()}


def remark_json(remark: Remark) -> dict[str, Json]:
    """A remark as programs keep it."""
    origin, span = remark.origin, remark.span
    plan: Json = None if span is None else {key: getattr(span, key) for key in _SPAN}
    return {
        "pass": remark.pass_name,
        "kind": str(remark.kind),
        "message": remark.message,
        "module": origin.module_path,
        "file": origin.file,
        "line": origin.line,
        "backward": origin.backward,
        "plan": plan,
    }
