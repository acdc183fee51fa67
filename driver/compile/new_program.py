"""The program of a module at level `comm`: its instructions, and beside them what checks and readers need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...backends.program.copied_states import copied_states
from ...backends.program.lower_program import lower_program
from ...backends.program.write_into_states import write_into_states
from ...diagnostics.version import __version__
from ...dsl.plan import Plan
from ...dsl.resolve import experts_of
from ...frontend.captured import Capture, InputKind, Mode
from ...frontend.to_ir import Floats
from ...ir.attributes import dtype_of
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.module import Module
from ...passes.base import Remark, RemarkKind
from ...runtime.checks.capacity import CAPACITY
from ...runtime.checks.reduction_dtypes import OWN, REDUCE, STORED_REDUCE
from ...runtime.errors import ProgramError
from ...runtime.program.arguments import Json, dtype_name
from ...runtime.program.program import Manifest, Program
from ...runtime.program.reference_records import Stated
from ...runtime.prover import with_derived_types
from ...runtime.prover.values import Refuted
from .pipeline_requirements import is_alone
from .request import Options

_SPAN = ("file", "line", "column", "length", "text")


Ranges = Mapping[str, IntegerRange]
"""By integer input, the range that its graph gives it."""


def new_program(captured: Capture, plan: Plan, options: Options, module: Module, remarks: Sequence[Remark]) -> Program:
    """Lower a module. What follows from the values of this call and model is left to `completed`."""
    lowered = lower_program(module)
    pipeline = lowered.pipeline
    if pipeline is not None:
        pipeline = replace(pipeline, separate_microbatches=is_alone(plan), nonlinear=captured.nonlinear)
    manifest = Manifest(
        mode=str(captured.mode),
        dtype=dtype_name(_judged(captured, plan, options.floats)),
        mesh=lowered.mesh,
        target=options.target,
        stretto=__version__,
        torch=torch.__version__,
        arguments={**_reduce(captured, plan, options), **_capacity(captured, plan)},
    )
    program = Program(
        manifest,
        lowered.inputs,
        lowered.outputs,
        lowered.functions,
        lowered.locations,
        ir=module.text(),
        remarks=[remark_json(r) for r in remarks],
        reference={**captured.reference, "stated": _stated(captured, manifest).to_json()},
        initial={},
        pipeline=pipeline,
        types=lowered.types,
    ).validated
    try:
        written = write_into_states(with_derived_types(program)).validated
    except (Refuted, ProgramError):
        return program  # what is wrong with it is for `verify` to say; each result then counts as memory of its own
    copied = [Remark("states", RemarkKind.MISSED, text) for text in copied_states(written)]
    return replace(written, remarks=[remark_json(remark) for remark in (*remarks, *copied)])


def completed(
    program: Program,
    ranges: Ranges,
    model: nn.Module,
    held: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    options: Options,
) -> Program:
    """A program of `new_program`, fresh or from the cache, with what is of this call alone: values, ranges, source."""
    arguments = {**_told(options.arguments, ranges), **_kept(program.manifest.arguments)}
    reference = program.reference
    assert isinstance(reference, Mapping), "a compiled program has a reference"
    checks = reference["stated"]
    assert isinstance(checks, Mapping), "a reference says what is checked"
    return replace(
        program,
        manifest=replace(program.manifest, arguments=arguments, source=options.source),
        reference={**reference, "stated": {**checks, "ranges": arguments["inputs"]}},
        initial=_initial(program, model, held, constants, options),
    )


def _kept(arguments: Mapping[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in arguments.items() if key in (REDUCE, STORED_REDUCE, CAPACITY)}


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
        if range_.named:
            about["named"] = list(range_.named)
    return {**arguments, "inputs": inputs}


def _reduce(captured: Capture, plan: Plan, options: Options) -> dict[str, Json]:
    """What checks need to know of gradients: the dtype that they are reduced in."""
    if captured.mode is not Mode.TRAIN:
        return {}
    follows = options.floats is Floats.AS_CAPTURED and plan.precision is not None
    stated = dtype_of(plan.precision.reduce) if follows and plan.precision is not None else None
    stored = dtype_of(plan.stored_reduce) if options.floats is Floats.AS_CAPTURED else None
    of_stored: dict[str, Json] = {} if stored is None else {STORED_REDUCE: dtype_name(stored)}
    return {REDUCE: OWN if stated is None else dtype_name(stated), **of_stored}


def _capacity(captured: Capture, plan: Plan) -> dict[str, Json]:
    """What checks need to know of experts: by parameter, how many times the even share of rows they take."""
    capped: dict[str, Json] = {}
    for each in captured.inputs:
        names = (each.name, *each.aliases) if each.kind is InputKind.PARAMETER else ()
        statement = next((found for name in names if (found := experts_of(plan, name)) is not None), None)
        if statement is not None and statement.capacity is not None:
            capped[each.name] = statement.capacity
    return {CAPACITY: capped} if capped else {}


def _judged(captured: Capture, plan: Plan, floats: Floats) -> torch.dtype:
    """The dtype that results are judged in: the coarsest that a value has, or that gradients are reduced in."""
    values: dict[torch.dtype, None] = {}
    for node in captured.graph.graph.nodes:
        value = node.meta.get("val")
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, Tensor) and each.dtype.is_floating_point:
                values[each.dtype] = None
    formats = [plan.stored_reduce, plan.precision.reduce if plan.precision is not None else None]
    reduced = [dtype_of(each) for each in formats] if captured.mode is Mode.TRAIN else []
    found = dict.fromkeys(
        [
            *(dtype for dtype in reduced if dtype is not None),
            *(t.dtype for t in captured.inputs if t.dtype.is_floating_point),
            *values,
        ]
    )
    return floats.of(max(found, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32))


def _stated(captured: Capture, manifest: Manifest) -> Stated:
    """What checks compare, from the capture alone."""
    trained = [tensor for tensor in captured.inputs if tensor.requires_grad]
    return Stated(
        manifest.mode,
        manifest.dtype,
        tuple(tensor.name for tensor in trained if tensor.kind is InputKind.PARAMETER),
        tuple(tensor.name for tensor in trained if tensor.kind is InputKind.INPUT),
        tuple(tensor.index for tensor in captured.inputs if tensor.kind is InputKind.TANGENT),
    )


def _initial(
    program: Program,
    model: nn.Module,
    held: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    options: Options,
) -> dict[str, Tensor]:
    """Values by name: the graph's own constants always; parameters and buffers, `held` ones too, when they are kept."""
    values: dict[str, Tensor] = dict(constants)
    if options.keep_weights:
        named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        known = dict(named) | dict(held)
        wanted = (t.name for t in program.inputs if t.kind in ("parameter", "buffer", "state"))
        values |= {name: known[name].detach() for name in wanted}
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
