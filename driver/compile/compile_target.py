"""`stretto compile TARGET --plan FILE -o DIR`: a target and a plan become a program folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import fill

from ...dsl.plan import Plan
from ...dsl.resolve_stored import resolve_stored_placements
from ...frontend.capture.model_parameters import parameter_infos
from ...frontend.capture.precision import compute_dtype
from ...frontend.captured import Mode
from ...frontend.dynamic_sizes.dynamic_dims import DynamicDims, DynamicSpec
from ...frontend.targets.load_target import load_target, load_targets
from ...frontend.targets.target import Request, Target
from ...frontend.to_ir import Floats
from ...ir.module import Module
from ...passes.default_pipeline import default_pipeline
from ...passes.pipelining.scheduled_pipeline import check_schedule
from ...runtime.named_entries.program_set import ProgramSet
from ...runtime.program.arguments import Json, dtype_name
from ...runtime.program.entries import MAIN
from ...runtime.program.folder import refuse_unwritable
from ...runtime.program.named_sizes import range_text
from ...runtime.program.program import Program
from ..cache.store import ProgramStore
from ..ir_files.dump_ir import IrDump, ir_of_failures
from ..report.advice import advice
from ..report.changed_function import changes
from ..report.explain import explain
from ..report.remarks import is_warning, remarks_of, warning_text
from ..report.show_explanation import mesh_text, parameters_text, sizes_text, totals_text
from ..text.console import note, progress, say
from .compile_program import compile_program, pipeline_config
from .model_source import PLAN_TEXT, source_record
from .request import CompileRequest, IfStatic, Observer, Options
from .states import refuse_unused_states
from .traced_call import sizes_refused

_PASS_ALONE = 'add --dump-ir DIR; "stretto bisect DIR" then names PASS again, and "stretto reduce DIR" what it fails on'
_STAGES = ("plan", "target", "capture", "cache", "backward", "convert", "passes", "lower", "sizes", "check", "save")


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
    states: tuple[str, ...] = ()
    """Globs over the buffers that are states."""
    runs_on: str = "cpu"
    """What the program is for, "cpu" or "cuda"."""

    @property
    def request(self) -> Request:
        """How the target is loaded."""
        return Request(mode=Mode(self.mode), dtype=self.dtype, **self.wanted_sizes)

    @property
    def wanted_sizes(self) -> dict[str, int]:
        """Batch and sequence, where they are chosen."""
        return {key: value for key, value in (("batch", self.batch), ("seq", self.seq)) if value is not None}


Check = Callable[[Program, CompileJob], Mapping[str, Json]]
"""Checks a program against the target that it was compiled from; the manifest's record of the result."""


def compile_target(job: CompileJob, check: Check | None = None) -> tuple[Program, dict[str, float]]:
    """`compile_entries` of a target that has one program, and that program."""
    programs, seconds = compile_entries(job, check)
    return programs.program(), seconds


def compile_entries(job: CompileJob, check: Check | None = None) -> tuple[ProgramSet, dict[str, float]]:
    """Compile all entries of a target and write the folder, whole or not at all; the seconds are those of each stage.

    What the plan says to no effect is a warning on stderr.

    `check` compares a program with the target, and returns what its manifest says of the result.
    Errors: PlanError, TargetError, CaptureError, ProgramError E0307 (the folder exists and is no program), E0316,
    E0508, and those of `check`.
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
        refuse_unwritable(Path(job.output))
        plan = Plan.load(job.plan)
        check_schedule(plan)
        begin("target")
        targets = load_targets(job.target, job.request)
        found: dict[str, Program] = {}
        for entry, target in targets.items():
            own = _of_entry(job, entry, targets) if entry else job
            dump = None if job.dump_ir is None else IrDump.start(os.path.join(job.dump_ir, entry))
            request = _request(own, plan, target, several=len(targets) > 1)
            if dump is not None:
                dump.write_pipeline(default_pipeline(pipeline_config(plan, request.options)))
            cache = ProgramStore.of_user() if dump is None else None
            program = compile_program(replace(request, cache=cache), Observer(begin, after)).program
            if check is not None:
                begin("check")
                program = replace(program, manifest=replace(program.manifest, checked=check(program, own)))
            found[entry or MAIN] = program
        refuse_unused_states(job.states, found.values())
        programs = ProgramSet.of(found)
        begin("save")
        programs.save(job.output)
        clock.end()
    warnings = [warning_text(each) for program in found.values() for each in remarks_of(program) if is_warning(each)]
    for text in dict.fromkeys(warnings):
        note(text)
    return programs, clock.seconds


def _of_entry(job: CompileJob, entry: str, entries: Iterable[str]) -> CompileJob:
    """The job of one entry: named dims of `entry.input` are its own, those of `input` are in all entries."""
    others = tuple(f"{other}." for other in entries if other != entry)
    dynamic = {name.removeprefix(f"{entry}."): d for name, d in job.dynamic.items() if not name.startswith(others)}
    return replace(job, target=f"{job.target}.{entry}", dynamic=dynamic)


def show_compiled(programs: ProgramSet, job: CompileJob, seconds: dict[str, float]) -> None:
    """Print a summary, of each entry where there are several."""
    for entry, program in programs:
        if programs.has_names:
            say(f"entry          {entry}")
        _show_program(program, job)
    by_stage = ", ".join(f"{stage} {took:.1f}" for stage, took in seconds.items())
    say(fill(by_stage, 80, initial_indent="seconds        ", subsequent_indent=" " * 15))
    manifest = next(program.manifest for _, program in programs)
    say(f"program        {job.output} ({manifest.mode}, {manifest.dtype})")


def _show_program(program: Program, job: CompileJob) -> None:
    explanation = explain(program)
    for text in advice(explanation):
        note(f"warning: {text}")
    say(f"mesh           {mesh_text(program.manifest)}")
    if program.symbolic is not None:
        say(f"sizes          {sizes_text(program.symbolic)}")
    for line in changes(program):
        say(f"changed        the function, as the plan says: {line}")
    say(f"parameters     {parameters_text(explanation)}")
    for at, line in enumerate(totals_text(explanation) or ["none"]):
        say(f"{'communication' if at == 0 else '':<15}{line}")
    missing = len(explanation.without_rule)
    if missing:
        say(f"no rule        {missing} ops are computed by every rank; `stretto explain {job.output}` names them")


def request_of(job: CompileJob, plan: Plan) -> CompileRequest:
    """The target's model and example call, with what the job says of both."""
    return _request(job, plan, load_target(job.target, job.request))


def _request(job: CompileJob, plan: Plan, target: Target, *, several: bool = False) -> CompileRequest:
    """That of a target; with `several` entries, a glob of states may name none of this one's buffers."""
    mode = Mode(job.mode)
    resolve_stored_placements(plan, parameter_infos(target.model))  # its mistakes are said before a long capture
    options = Options(
        mode=mode,
        loss_only=mode is Mode.TRAIN,
        floats=Floats.FLOAT64 if job.dtype == "float64" else Floats.AS_CAPTURED,
        arguments={"inputs": target.input_ranges},
        source=source_record(
            {**target.source, "plan": os.path.abspath(job.plan), PLAN_TEXT: plan.text, **_compute(plan)},
            {"dtype": job.dtype, **job.wanted_sizes, **_stated(job)},
        ),
        keep_weights=target.weights_are_real,
        states=job.states,
        states_elsewhere=several,
        target=job.runs_on,
    )
    request = CompileRequest.of(target.model, (), target.inputs, plan, options)
    return with_named_sizes(request, DynamicDims.of(job.dynamic)) if job.dynamic else request


def _stated(job: CompileJob) -> dict[str, Json]:
    """What else the command said, for who compiles again."""
    states: dict[str, Json] = {"states": list(job.states)} if job.states else {}
    return {**states, **({"target": job.runs_on} if job.runs_on != CompileJob.runs_on else {})}


def with_named_sizes(request: CompileRequest, dims: DynamicDims) -> CompileRequest:
    """The request with the sizes of these dims left open. Raises E0422 where one is out of its range in the call."""
    sizes = dims.in_call(request.call)
    for each in dict.fromkeys(each for named in dims.dims.values() for each in named.values()):
        if each.name not in sizes or not each.holds(sizes[each.name].size):
            raise sizes_refused(f'"{each.name}" is not within {range_text(each.low, each.high)} in the inputs')
    options = replace(request.options, padded_inputs=tuple(dims.dims))
    return replace(request, options=options, sizes=sizes, if_static=IfStatic.REFUSE)


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
            took = time.perf_counter() - self._since
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + took
