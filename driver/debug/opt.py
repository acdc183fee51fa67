"""`stretto opt`: run a pipeline on the text of a module, and print the module after it.

The module goes to stdout or to a file. Modules between passes, remarks and times go to stderr.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...diagnostics import StrettoError
from ...ir.module import Module
from ...ir.source_text import parse_named, read_module
from ...passes.base import Remark
from ...passes.manager import PassFailure, PassManager, PassRun, Step, Verification, single, step_name
from ...runtime.program.arguments import Json
from ..ir_files.dump_ir import ir_of_failures
from ..ir_files.module_source import Source, reproducer
from ..text.console import note, place_text, say
from ..text.text_files import write_text

_REPRODUCER = "add --reproducer FILE to write the module before the pass, with the pass, to a file"


@dataclass(frozen=True)
class OptJob:
    """The arguments of `stretto opt`."""

    source: Source
    output: str | None = None
    """None: stdout."""
    print_after: tuple[str, ...] = ()
    """Passes after which the module is printed."""
    print_after_all: bool = False
    print_changed: bool = False
    """Print the module after each pass that changed it."""
    time_passes: bool = False
    remarks: bool = False
    """Print the remarks of each pass."""
    verification: Verification = Verification.AFTER_EACH
    reproducer: str | None = None
    """The file for the module and the pass if a pass fails."""


@dataclass(frozen=True)
class Optimized:
    """The text of the module after the passes, and the record of each pass."""

    text: str
    runs: tuple[PassRun, ...]


def optimize(job: OptJob) -> Optimized:
    """Run the pipeline; writes the output file, whole or not at all.

    Errors: E0410 to E0417 in the pipeline, E0418 for a pass that leaves an invalid module, E0419 for one that fails on
    a module that was not verified, E0504 to E0506 in the module, E0508 for files; those of passes. A pass that fails
    otherwise is an internal error, PassFailure.
    """
    steps = list(single(job.source.steps()))
    _check_names(job.print_after, [step_name(step) for step in steps])
    text, name = job.source.text, job.source.name
    module = (read_module if job.verification is Verification.AFTER_EACH else parse_named)(text, name)
    with ir_of_failures() as keep:
        keep(module)
        runs = _run(job, steps, module)
    if job.time_passes:
        show_times(runs)
    done = Optimized(module.text(), tuple(runs))
    if job.output is not None:
        write_text(job.output, done.text)
    return done


def _run(job: OptJob, steps: Sequence[Step], module: Module) -> list[PassRun]:
    watch = _Watch(job, module)
    manager = PassManager(steps, watch.after, job.verification, watch.runs)
    try:
        manager.run(module)
    except (PassFailure, StrettoError) as error:
        watch.failed(steps[watch.count], error)
        if isinstance(error, PassFailure):
            raise _without_traceback(error, job) from error.__cause__
        raise
    return manager.runs


def _without_traceback(error: PassFailure, job: OptJob) -> PassFailure | StrettoError:
    """The error to show: for an invalid module a traceback does not help."""
    if isinstance(error.__cause__, StrettoError):
        help_ = "" if job.reproducer else _REPRODUCER
        return StrettoError("E0418", str(error), help=help_)
    if job.verification is Verification.NEVER:
        return StrettoError(
            "E0419", f"{error}; the module was not verified", help="run without --no-verify to see what is wrong"
        )
    return error


def show_optimized(job: OptJob, done: Optimized) -> None:
    """Print the module, unless it was written to a file."""
    if job.output is None:
        say(done.text.rstrip("\n"))


def optimized_json(job: OptJob, done: Optimized) -> Mapping[str, Json]:
    """What each pass did, and the module's text or the file that it was written to, as JSON."""
    passes: Json = [
        {
            "name": run.name,
            "seconds": run.seconds,
            "rewritten": run.report.rewritten,
            "remarks": [remark_json(remark) for remark in run.report.remarks],
        }
        for run in done.runs
    ]
    return {"passes": passes, "output": job.output, "module": done.text if job.output is None else None}


def show_times(runs: list[PassRun]) -> None:
    """Write the seconds of every pass, and their sum, to stderr."""
    total = sum(run.seconds for run in runs)
    for run in runs:
        share = run.seconds / total if total else 0.0
        note(f"{run.seconds:>10.4f} s  {share:>6.1%}  {run.name}")
    note(f"{total:>10.4f} s  {1:>6.1%}  total")


def show_remark(remark: Remark) -> None:
    """Write a remark to stderr: the place in the model, the kind, the pass, the message."""
    origin = remark.origin
    place = place_text(origin.file, origin.line)
    where = f" (in {origin.module_path})" if origin.module_path else ""
    note(f"{place + ': ' if place else ''}{remark.kind}[{remark.pass_name}]: {remark.message}{where}")


def remark_json(remark: Remark) -> dict[str, Json]:
    """A remark with its place in the model, as JSON."""
    origin = remark.origin
    return {
        "pass": remark.pass_name, "kind": str(remark.kind), "message": remark.message, "file": origin.file,
        "line": origin.line, "module_path": origin.module_path,
    }  # fmt: skip


@dataclass
class _Watch:
    """Follows the passes: prints the module, remarks and the reproducer of a failing pass to stderr, as asked."""

    job: OptJob
    module: Module
    runs: list[PassRun] = field(default_factory=list)
    """Filled by the manager."""
    count: int = 0
    """How many passes are done."""
    last: str = field(init=False, default="")
    """The text before the running pass, if an option needs it."""

    def __post_init__(self) -> None:
        self.last = self._text() if self._keeps else ""

    @property
    def _keeps(self) -> bool:
        return self.job.print_changed or self.job.reproducer is not None

    def _text(self) -> str:
        return self.module.text()

    def after(self, name: str, module: Module) -> None:
        """Called by the manager after each pass."""
        job = self.job
        for remark in self.runs[-1].report.remarks if job.remarks else ():
            show_remark(remark)
        text = self._text() if self._keeps else ""
        changed = job.print_changed and text != self.last
        if job.print_after_all or name in job.print_after or changed:
            note(f"// -----// after {name} //----- //\n{(text or self._text()).rstrip()}")
        elif job.print_changed:
            note(f"// -----// after {name}: no change //----- //")
        self.last = text
        self.count += 1

    def failed(self, step: Step, error: PassFailure | StrettoError) -> None:
        """Write the reproducer, or print how to get one."""
        file = self.job.reproducer
        if file is not None:
            why = error.message if isinstance(error, StrettoError) else str(error)
            write_text(file, reproducer(self.last, [step], f"{step_name(step)}: {why.splitlines()[0]}"))
            note(f"wrote the module before the pass, with the pass, to {file}; to run it again: stretto opt {file}")
        elif isinstance(error, PassFailure):
            error.add_note(f"help: {_REPRODUCER}")


def _check_names(wanted: tuple[str, ...], names: list[str]) -> None:
    """Raise E0417 if --print-after names a pass that the pipeline does not run."""
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"passes: {', '.join(dict.fromkeys(names))}"
            raise StrettoError("E0417", f'the pipeline does not run the pass "{name}"', help=hint)
