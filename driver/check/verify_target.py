"""`stretto verify TARGET --plan FILE`: eager PyTorch, the captured module, every pass and the program, one by one.

All run in this process, in float64, on the same random values, so that the first row that differs names the culprit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...frontend.to_ir import Floats
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.equivalence.random_inputs import integer_arguments
from ...ir.module import Module
from ...passes.default_pipeline import default_pipeline
from ...passes.manager import PassFailure, Step, single, step_name
from ...passes.pipeline_text import print_pipeline
from ...runtime.program.program import Program
from ..compile.compile_program import compile_program, pipeline_config
from ..compile.compile_target import CompileJob, request_of
from ..compile.request import CAPTURED, Compiled, CompileRequest, Observer
from ..ir_files.module_source import Source
from ..text.console import note, progress
from .capture_check import CapturedModule, check_capture
from .lowering_check import LOWERING
from .pass_check import CheckOptions, raised_verdict, with_stated_ranges
from .verify_passes import CAPTURE, PassesJob, PassesReport, verify_passes


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
        try:
            request, compiled, text = _compiled(replace(in_own_dtypes, options=raised))
        except _StoppedError as stopped:
            return _first_fault(stopped, default_pipeline(pipeline_config(plan, raised)), job.options)
        module = Module.parse(text)
        options = replace(job.options, ranges={**_stated_ranges(compiled.program, module), **job.options.ranges})
        bar.show("capture", 1)
        captured = CapturedModule(
            module, compiled.own_capture, plan, job.target, compiling.request, request.options.loss_only
        )
        first = check_capture(captured, options)
    with _plan_of(compiled, plan) as decided:
        steps = default_pipeline(pipeline_config(decided, request.options))
        if first.breakage is not None:
            return PassesReport((first,), tuple(step_name(step) for step in steps))
        report = verify_passes(PassesJob(Source(text, CAPTURED, print_pipeline(steps)), options))
    return replace(report, verdicts=(first, *report.verdicts))


@contextmanager
def _plan_of(compiled: Compiled, plan: Plan) -> Iterator[Plan]:
    """The plan that was compiled, in a file where that is not the one given: `move auto` was decided by bytes."""
    if compiled.decided is None or str(compiled.decided) == str(plan):
        yield plan
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "decided.plan"
        file.write_text(f"{compiled.decided}\n", encoding="utf-8")
        yield Plan.load(file)


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
    """Raises _StoppedError where the compiler fails: refusals come before a module is lowered."""
    texts: list[str] = []
    stages: list[str] = []

    def keep(name: str, module: Module) -> None:
        if name == CAPTURED:
            texts.append(module.text())

    try:
        return compile_program(request, Observer(stages.append, keep)), texts[0]
    except StrettoError as error:
        if not texts or stages[-1] != "lower":
            raise
        raise _StoppedError(LOWERING, texts[0], error) from error
    except Exception as error:  # any: what is under check may be wrong in any way
        part = error.pass_name if isinstance(error, PassFailure) else LOWERING if stages[-1] == "lower" else CAPTURE
        raise _StoppedError(part, texts[0] if texts else "", error) from error


def _first_fault(stopped: _StoppedError, steps: Sequence[Step], options: CheckOptions) -> PassesReport:
    """The report of a compile that stopped: what it stumbled over may be the work of an earlier pass."""
    row = raised_verdict(stopped.part, stopped.error)
    names = [step_name(step) for step in single(steps)]
    not_run = tuple(names[names.index(stopped.part) + 1 :] if stopped.part in names else names)
    if not stopped.text or stopped.part == CAPTURE:
        return PassesReport((row,), not_run)
    try:
        ranges = {**with_stated_ranges(Module.parse(stopped.text), {}), **options.ranges}
        job = PassesJob(Source(stopped.text, CAPTURED, print_pipeline(steps)), replace(options, ranges=ranges))
        report = verify_passes(job)
    except (PassFailure, StrettoError):
        return PassesReport((row,), not_run)
    if report.verdicts[-1].breakage is not None:
        return report
    return PassesReport((*(v for v in report.verdicts if v.name != stopped.part), row))


class _StoppedError(Exception):
    """A compile that stopped in `part` by an error of the compiler; `text` is the captured module, if there is one."""

    def __init__(self, part: str, text: str, error: Exception) -> None:
        super().__init__(str(error))
        self.part, self.text, self.error = part, text, error


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
