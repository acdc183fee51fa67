"""`stretto verify TARGET --plan FILE`: eager PyTorch, the captured module, every pass and the program, one by one.

All run in this process, in float64, on the same random values, so that the first row that differs names the culprit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...frontend.to_ir import Floats
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.equivalence.random_inputs import integer_arguments
from ...ir.module import Module
from ...passes.default_pipeline import default_pipeline
from ...passes.manager import step_name
from ...passes.pipeline_text import print_pipeline
from ...runtime.program.program import Program
from ..compile.compile_program import compile_program, pipeline_config
from ..compile.compile_target import CompileJob, request_of
from ..compile.request import CAPTURED, Compiled, CompileRequest, Observer
from ..ir_files.module_source import Source
from ..text.console import note, progress
from .capture_check import CapturedModule, check_capture
from .pass_check import CheckOptions
from .verify_passes import PassesJob, PassesReport, verify_passes


@dataclass(frozen=True)
class TargetJob:
    """The arguments of `stretto verify TARGET --plan`."""

    target: str
    plan: str
    mode: str = "train"
    batch: int | None = None
    seq: int | None = None
    options: CheckOptions = CheckOptions()


def verify_target(job: TargetJob) -> PassesReport:
    """Check capture, every pass and lowering. Errors: those of compiling, and of `verify_passes`."""
    plan = Plan.load(job.plan)
    compiling = CompileJob(job.target, job.plan, "", job.mode, None, job.batch, job.seq)
    with progress(2) as bar:
        bar.show("compiling")
        in_own_dtypes = request_of(compiling, plan)
        raised = replace(in_own_dtypes.options, floats=Floats.FLOAT64)
        request, compiled, text = _compiled(replace(in_own_dtypes, options=raised))
        module = Module.parse(text)
        options = replace(job.options, ranges={**_stated_ranges(compiled.program, module), **job.options.ranges})
        bar.show("capture", 1)
        captured = CapturedModule(
            module, compiled.own_capture, plan, job.target, compiling.request, request.options.loss_only
        )
        first = check_capture(captured, options)
    steps = default_pipeline(pipeline_config(plan, request.options))
    if first.breakage is not None:
        return PassesReport((first,), tuple(step_name(step) for step in steps))
    report = verify_passes(PassesJob(Source(text, CAPTURED, print_pipeline(steps)), options))
    return replace(report, verdicts=(first, *report.verdicts))


def _compiled(request: CompileRequest) -> tuple[CompileRequest, Compiled, str]:
    """The request that could be compiled, what it gave, and the captured module as text.

    It has all outputs of the forward, as `stretto.compile` has, or the loss alone where a plan refuses the others.
    """
    every_output = replace(request, options=replace(request.options, loss_only=False))
    try:
        return every_output, *_captured_and_compiled(every_output)
    except StrettoError as error:
        if not request.options.loss_only:
            raise
        found = _captured_and_compiled(request)
        note(f"outputs beside the loss are not compared: {error.code}, {error.message}")
        return request, *found


def _captured_and_compiled(request: CompileRequest) -> tuple[Compiled, str]:
    texts: list[str] = []

    def keep(name: str, module: Module) -> None:
        if name == CAPTURED:
            texts.append(module.text())

    return compile_program(request, Observer(module=keep)), texts[0]


def _stated_ranges(program: Program, module: Module) -> Mapping[str, IntegerRange]:
    """What the target and the graph say of integer inputs."""
    stated = program.manifest.arguments.get("inputs")
    inputs = stated if isinstance(stated, Mapping) else {}
    return {
        name: IntegerRange(high, low=low if isinstance(low := about.get("low", 0), int) else 0)
        for name, about in inputs.items()
        if isinstance(about, Mapping)
        and isinstance(high := about.get("high"), int)
        and name in integer_arguments(module)
    }
