"""`stretto opt`: run the passes that a pipeline names on a module that is text, and print what they leave.

The module goes to stdout or to a file; what was asked to be printed on the way, and times, go to stderr.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..diagnostics import StrettoError
from ..ir.module import Module
from ..ir.source_text import read_module
from ..passes.manager import PassManager, PassRun, Verification, single, step_name
from ..passes.pipeline import parse_pipeline
from ..runtime.arguments import Json
from .console import note, say
from .failures import ir_of_failures
from .text_files import read_text, write_text


@dataclass(frozen=True)
class OptJob:
    """What the command line asks for."""

    file: str
    pipeline: str
    output: str | None = None
    """None: stdout."""
    print_after: tuple[str, ...] = ()
    """Passes after which the module is printed."""
    print_after_all: bool = False
    print_changed: bool = False
    """Print the module after each pass that changed it."""
    time_passes: bool = False
    verification: Verification = Verification.AFTER_EACH


@dataclass(frozen=True)
class Optimized:
    """The module as text, and what every pass did."""

    text: str
    runs: tuple[PassRun, ...]


def optimize(job: OptJob) -> Optimized:
    """Run the pipeline; writes the output file, whole or not at all.

    Errors: E0410 to E0417 in the pipeline, E0504 to E0506 in the module, E0507 and E0508 for files; those of passes.
    """
    steps = parse_pipeline(job.pipeline)
    _check_names(job.print_after, [step_name(step) for step in single(steps)])
    text, name = read_text(job.file)
    module = read_module(text, name) if job.verification is Verification.AFTER_EACH else Module.parse(text, name)
    with ir_of_failures() as keep:
        keep(module)
        manager = PassManager(steps, _Printer(job, module).after, job.verification)
        manager.run(module)
    if job.time_passes:
        show_times(manager.runs)
    done = Optimized(module.text(), tuple(manager.runs))
    if job.output is not None:
        write_text(job.output, done.text)
    return done


def show_optimized(job: OptJob, done: Optimized) -> None:
    """Print the module, unless it was written to a file."""
    if job.output is None:
        say(done.text.rstrip("\n"))


def optimized_json(job: OptJob, done: Optimized) -> Mapping[str, Json]:
    """What each pass did, and the module's text, or the file that it was written to."""
    passes: Json = [
        {
            "name": run.name,
            "seconds": run.seconds,
            "rewritten": run.report.rewritten,
            "remarks": [str(remark) for remark in run.report.remarks],
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


@dataclass
class _Printer:
    """Writes the module to stderr after the passes that were asked for."""

    job: OptJob
    module: Module
    last: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.last = self.module.text() if self.job.print_changed else ""

    def after(self, name: str, module: Module) -> None:
        """Called by the manager after each pass."""
        job = self.job
        text = module.text() if job.print_changed else ""
        changed = text != self.last
        if job.print_after_all or name in job.print_after or changed:
            note(f"// -----// after {name} //----- //\n{(text or module.text()).rstrip()}")
        elif job.print_changed:
            note(f"// -----// after {name}: no change //----- //")
        self.last = text


def _check_names(wanted: tuple[str, ...], names: list[str]) -> None:
    """Raise E0417 for a pass to print after that the pipeline does not run."""
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"passes: {', '.join(dict.fromkeys(names))}"
            raise StrettoError("E0417", f'the pipeline does not run the pass "{name}"', help=hint)
