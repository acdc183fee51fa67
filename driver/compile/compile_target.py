"""`stretto compile TARGET --plan FILE -o DIR`: a target and a plan become a program folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...dsl.plan import Plan
from ...dsl.resolve import resolve_parameters
from ...frontend.capture.model_parameters import parameter_infos
from ...frontend.capture.precision import compute_dtype
from ...frontend.captured import Mode
from ...frontend.dynamic_sizes.dynamic_dims import DynamicDims, DynamicSpec
from ...frontend.targets.load_target import load_target
from ...frontend.targets.target import Request
from ...frontend.to_ir import Floats
from ...ir.module import Module
from ...runtime.program.arguments import Json, dtype_name
from ...runtime.program.folder import refuse_other_folder
from ...runtime.program.program import Program
from ..check.live_model import source_record
from ..report.explain import explain
from ..report.remarks import is_warning, remarks_of, warning_text
from ..report.show_explanation import mesh_text, parameters_text, sizes_text, totals_text
from ..text.console import note, progress, say
from .compile_dynamic import compile_dynamic
from .compile_program import Options, compile_program, pipeline
from .dump_ir import IrDump, ir_of_failures

_PASS_ALONE = 'add --dump-ir DIR; "stretto bisect DIR" then names PASS again, and "stretto reduce DIR" what it fails on'
_STAGES = ("plan", "target", "capture", "convert", "passes", "lower", "sizes", "save")


@dataclass(frozen=True)
class CompileJob:
    """What the command line asks for. `batch` and `seq` are for `hf:` targets; None: the target's own choice."""

    target: str
    plan: str
    output: str
    mode: str = "train"
    dtype: str | None = None
    batch: int | None = None
    seq: int | None = None
    dump_ir: str | None = None
    """A folder for the module after each pass."""
    dynamic: DynamicSpec = field(default_factory=dict)
    """By input, the dims whose sizes are chosen when the program is run."""


def compile_target(job: CompileJob) -> tuple[Program, dict[str, float]]:
    """Compile and write the folder, whole or not at all; the program, and the seconds that each stage took.

    What the plan says to no effect is a warning on stderr.

    Errors: PlanError, TargetError, CaptureError, ProgramError E0307 (the folder exists and is no program), E0508.
    """
    clock = _Clock()
    with progress(len(_STAGES)) as bar, ir_of_failures(_PASS_ALONE) as keep:

        def begin(stage: str) -> None:
            clock.begin(stage)
            bar.show(stage, _STAGES.index(stage))

        def after(name: str, module: Module) -> None:
            keep(module)
            bar.show(f"passes: {name}")
            if dump is not None:
                dump.write(name, module)

        begin("plan")
        refuse_other_folder(Path(job.output))
        plan = Plan.load(job.plan)
        dump = None if job.dump_ir is None else IrDump.start(job.dump_ir)
        if dump is not None:
            dump.write_pipeline(pipeline(plan, floats=_floats(job)))
        begin("target")
        program = _compiled(job, plan, begin, after)
        begin("save")
        program.save(job.output)
        clock.end()
    for each in remarks_of(program):
        if is_warning(each):
            note(warning_text(each))
    return program, clock.seconds


def show_compiled(program: Program, job: CompileJob, seconds: dict[str, float]) -> None:
    """Print a summary."""
    explanation = explain(program)
    say(f"mesh           {mesh_text(program.manifest)}")
    if program.symbolic is not None:
        say(f"sizes          {sizes_text(program.symbolic)}")
    say(f"parameters     {parameters_text(explanation)}")
    for at, line in enumerate(totals_text(explanation) or ["none"]):
        say(f"{'communication' if at == 0 else '':<15}{line}")
    missing = len(explanation.without_rule)
    if missing:
        say(f"no rule        {missing} ops are computed by every rank; `stretto explain {job.output}` names them")
    say(f"seconds        {', '.join(f'{stage} {took:.1f}' for stage, took in seconds.items())}")
    say(f"program        {job.output} ({program.manifest.mode}, {program.manifest.dtype})")


def _compiled(
    job: CompileJob, plan: Plan, begin: Callable[[str], None], after: Callable[[str, Module], None]
) -> Program:
    mode = Mode(job.mode)
    wanted = {key: value for key, value in (("batch", job.batch), ("seq", job.seq)) if value is not None}
    target = load_target(job.target, Request(mode=mode, dtype=job.dtype, **wanted))
    resolve_parameters(plan, parameter_infos(target.model))  # its mistakes are said before a long capture
    options = Options(
        mode=mode,
        loss_only=mode is Mode.TRAIN,
        floats=_floats(job),
        arguments={"inputs": target.input_ranges},
        source=source_record({**target.source, **_compute(plan)}, {"dtype": job.dtype, **wanted}),
        keep_weights=target.weights_are_real,
    )
    if job.dynamic:
        dims = DynamicDims.of(job.dynamic)
        made = compile_dynamic(target.model, target.inputs, plan, dims, options, progress=begin, after=after)
    else:
        made = compile_program(target.model, (), target.inputs, plan, options, progress=begin, after=after)
    return made.program


def _floats(job: CompileJob) -> Floats:
    return Floats.FLOAT64 if job.dtype == "float64" else Floats.AS_CAPTURED


def _compute(plan: Plan) -> dict[str, Json]:
    """What the model is cast to, for who loads it again."""
    dtype = compute_dtype(plan)
    return {} if dtype is None else {"compute": dtype_name(dtype)}


@dataclass
class _Clock:
    """How long each stage took (seconds)."""

    seconds: dict[str, float] = field(default_factory=dict)
    _stage: str = ""
    _since: float = 0.0

    def begin(self, stage: str) -> None:
        """End the stage before, and begin this one."""
        self.end()
        self._stage, self._since = stage, time.perf_counter()

    def end(self) -> None:
        """End the present stage."""
        if self._stage:
            self.seconds[self._stage] = time.perf_counter() - self._since
