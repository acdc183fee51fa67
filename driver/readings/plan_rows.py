"""Compare what a program says of itself with what the text of its plan says, statement by statement.

docs/trust.md lists the items that no row is about, and the parts of others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import nn

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...runtime.checks.capacity import capacities
from ...runtime.checks.reduction_dtypes import OWN, REDUCE, STORED_REDUCE
from ...runtime.checks.report import PLAN, CheckRow, Verdict, raised_row
from ...runtime.lanes.late_frees import late_frees
from ...runtime.program.program import Program
from ...runtime.prover.prove import prove
from ...runtime.prover.types import Types
from .attention_rows import attention_facts
from .expert_rows import expert_facts
from .fuse_rows import fused_facts
from .gather_rows import gather_facts
from .input_cuts import batch_of, cuts_of_inputs
from .kinds_again import kinds_against_plan
from .loss_chunks import loss_facts
from .nanobatches import run_once_against_plan
from .overlap_rows import overlap_facts
from .parameter_cuts import cuts_of_buffer, cuts_of_parameter
from .pipeline_rows import pipeline_facts
from .plan_text import PlanText
from .recomputed import kept_against_plan
from .ring_rows import ring_facts
from .stated_cuts import cuts_text, stated_cuts
from .stored_rows import stored_facts

_DTYPES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_NOTE = "the program has {}; the plan says {}"


def rows_of_plan(program: Program, text: str, model: nn.Module | None) -> list[CheckRow]:
    """A row for each fact that a program, compiled of `model`, has otherwise than the plan of this text says.

    Without a model nothing is said of where parameters lie, and where `split` begins stages.
    """
    plan = PlanText.of(text)
    found, expected = _mesh_text(program.manifest.mesh), _mesh_text(plan.mesh)
    if found != expected:
        return [CheckRow(PLAN, "mesh", math.inf, Verdict.DIFFERS, _NOTE.format(found, expected))]
    rows = [*_inputs(program, plan), *_facts(program, plan, model)]
    rows += [] if model is None else _parameters(program, plan, model)
    rows += dict.fromkeys([*kept_against_plan(program, plan), *run_once_against_plan(program, plan)])
    rows += dict.fromkeys(kinds_against_plan(program, plan))
    rows += [("memory", line) for line in late_frees(program)]
    return [CheckRow(PLAN, name, math.inf, Verdict.DIFFERS, note) for name, note in rows]


def rows_of_folder_plan(program: Program, model: nn.Module | None) -> list[CheckRow]:
    """The rows of the plan whose text the manifest of a folder has; none where it has no text.

    A folder is a claim: a text that is no plan, or of another program, is a row too.
    """
    text = program.manifest.source.get("plan_text")
    if not isinstance(text, str):
        return []
    try:
        Plan.parse(text)
    except StrettoError as error:
        return [CheckRow(PLAN, "text", math.inf, Verdict.DIFFERS, f"it is no plan: {error.code}, {error.message}")]
    try:
        return rows_of_plan(program, text, model)
    except (
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:  # a program that the text does not fit at all
        return [raised_row("the comparison with the plan", error)]


def _parameters(program: Program, plan: PlanText, model: nn.Module) -> Iterator[tuple[str, str]]:
    """Of parameters and buffers."""
    expected = [(each, cuts_of_parameter(plan, model, each)) for each in program.of_kind("parameter")]
    expected += [(each, cuts_of_buffer(plan, each)) for each in program.of_kind("buffer")]
    for tensor, cuts in expected:
        if (found := stated_cuts(program, tensor)) != cuts:
            yield tensor.name, f"the program has it {cuts_text(found)}; the plan says {cuts_text(cuts)}"


def _inputs(program: Program, plan: PlanText) -> Iterator[tuple[str, str]]:
    inputs = {each.name: each for each in sorted(program.of_kind("input"), key=lambda each: each.index or 0)}
    shapes = {name: each.shape for name, each in inputs.items()}
    batch = batch_of(plan, shapes)
    for name, expected in cuts_of_inputs(plan, shapes, batch).items():
        found = stated_cuts(program, inputs[name])
        if found != expected:
            yield name, f"the program has it {cuts_text(found)}; the plan says {cuts_text(expected)}"
    pipeline, reference = program.pipeline, program.single_device
    if pipeline is None or not pipeline.separate_microbatches or pipeline.microbatches == 1 or reference is None:
        return
    for each in reference.inputs:
        if each.kind == "input" and (each.shape != shapes[each.name]) != (each.name in batch):
            what = ("cuts it into microbatches", "is whole in each")
            first, second = what if each.name not in batch else reversed(what)
            yield each.name, f"the program {first}; by the plan it {second}"


def _facts(program: Program, plan: PlanText, model: nn.Module | None) -> Iterator[tuple[str, str]]:
    """Of the mesh, the precision, the pipeline, capacities of experts, attention, overlap, storage and memory."""
    for name, found, expected in (
        *_precision(program, plan.precision, plan.stored_reduce),
        *pipeline_facts(program, plan, model),
        *_capacities(program, plan),
        *attention_facts(program, plan),
        *dict.fromkeys(overlap_facts(program, plan)),
        *dict.fromkeys(stored_facts(program, plan)),
        *peak_facts(program, plan),
        *dict.fromkeys(gather_facts(program, plan)),
        *ring_facts(program, plan),
        *fused_facts(program, plan),
        *loss_facts(program, plan),
        *dict.fromkeys(expert_facts(program, plan)),
    ):
        if found != expected:
            yield name, _NOTE.format(found, expected)


def _precision(
    program: Program, formats: Mapping[str, str], stored: str | None
) -> Iterator[tuple[str, object, object]]:
    stated = {item: _DTYPES[format] for item, format in formats.items()}
    request = program.manifest.source.get("request")
    if isinstance(request, Mapping) and request.get("dtype") == "float64":
        return  # it raises every format
    yield "precision compute", program.manifest.source.get("compute"), stated.get("compute")
    if program.manifest.mode == "train":
        yield "precision reduce", program.manifest.arguments.get(REDUCE), stated.get("reduce", OWN)
        yield "zero reduce", program.manifest.arguments.get(STORED_REDUCE), stored and _DTYPES[stored]
    if "params" in stated:
        floats = {each.dtype for each in program.of_kind("parameter")} & {*_DTYPES.values()}
        yield "precision params", ", ".join(sorted(floats - {stated["params"]})) or stated["params"], stated["params"]


def _capacities(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    found = capacities(program)
    for each in program.of_kind("parameter"):
        stated = (plan.capacity(name) for name in (each.name, *each.aliases))
        yield f"capacity of {each.name}", found.get(each.name), next((n for n in stated if n is not None), None)


def peak_facts(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    """For each cap in bytes: the fact's name, the proven peak of a rank where it is above, and the cap."""
    caps = plan.memory_caps
    request = program.manifest.source.get("request")
    if not caps or (isinstance(request, dict) and request.get("dtype") == "float64"):
        return  # the caps are those of the plan's formats
    peak = prove(program, types=Types.STATED).peak_bytes
    for statement, cap in caps.items():
        yield f"{statement} memory", f"a peak of {peak} bytes" if peak > cap else cap, cap


def _mesh_text(mesh: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{name}={size}" for name, size in mesh)
