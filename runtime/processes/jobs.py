"""Checking a program folder, and running it for some steps, on processes of this machine.

`check_processes` and `run_processes_for` are called by a launcher; the two entries after them by every process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor
from torch.distributed.tensor import DTensor

from ..checks.model_and_program import AllRanks, SingleDevice
from ..checks.program_check import Expected, check
from ..checks.report import CheckReport, CheckRow, Verdict
from ..checks.steps import StepsReport, run_steps
from ..program.arguments import Json
from ..program.json_fields import Fields
from ..program.program import Program
from ..program.records import Input
from ..rank.nan_watch import detect_anomaly
from ..session import Session
from ..threads.session import Replicas
from .launch import run_processes
from .parameters import distributed, is_here
from .session import ProcessRank
from .world import join


def check_processes(
    folder: str | Path,
    *,
    steps: int = 3,
    seed: int = 0,
    entry: str = f"{__name__}:check_entry",
    sizes: Mapping[str, int] | None = None,
) -> CheckReport:
    """`check` with one process per rank and parameters that are DTensors; rank 0's report.

    `entry` is what a process runs; another one may call `check_process` with another reference. `sizes` are those
    named sizes of the program that are not to be as it was compiled.
    """
    program = Program.load(folder)
    arguments: Json = {
        "folder": str(Path(folder).resolve()), "steps": steps, "seed": seed, "sizes": dict(sizes or {}),
    }  # fmt: skip
    reports = run_processes(entry, arguments, program.mesh.ranks)
    fields = Fields(reports[0], "report")
    return CheckReport(fields.each("rows", _row), fields.text("dtype"), fields.whole("steps"), fields.whole("seed"))


def run_processes_for(
    folder: str | Path,
    *,
    steps: int = 10,
    seed: int = 0,
    anomalies: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> StepsReport:
    """`run_steps` with one process per rank and parameters that are DTensors; rank 0's times.

    With `anomalies` each of them looks for the first NaN (`detect_anomaly`).
    """
    program = Program.load(folder)
    arguments: Json = {
        "folder": str(Path(folder).resolve()), "steps": steps, "seed": seed, "anomalies": anomalies,
        "sizes": dict(sizes or {}),
    }  # fmt: skip
    fields = Fields(run_processes(f"{__name__}:steps_entry", arguments, program.mesh.ranks)[0], "report")
    return StepsReport(
        fields.text("mode"),
        fields.each("losses", _number),
        fields.each("seconds", _number),
        fields.whole_or_none("tokens"),
    )


def check_entry(arguments: Json) -> Json:
    """One process of `check_processes`."""
    return check_process(arguments, lambda program: SingleDevice)


def check_process(arguments: Json, expected: Callable[[Program], Expected]) -> Json:
    """One process of a check against what `expected` says of the program."""
    program, steps, seed = _given(arguments)
    single = expected(program)
    return check(program, ranks=_checking, side=ProcessSide, expected=single, steps=steps, seed=seed).to_json()


def steps_entry(arguments: Json) -> Json:
    """One process of `run_processes_for`."""
    program, steps, seed = _given(arguments)
    with detect_anomaly() if Fields(arguments, "arguments").flag_or("anomalies", False) else nullcontext():
        return run_steps(program, ranks=ProcessRank, side=ProcessSide, steps=steps, seed=seed).to_json()


class ProcessSide(AllRanks):
    """The program seen from one of its processes: parameters, gradients and optimizer state are DTensors."""

    def parameter(self, each: Input, value: Tensor) -> Tensor:
        """The DTensor of which this process holds its part."""
        world, mesh = join(self.program.manifest.target), self.program.mesh
        home = self.program.home(each)
        return distributed(value.clone().requires_grad_(each.requires_grad), each.shards, world, mesh, home)

    def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
        """The outputs, each of them whole on every rank."""
        return [_whole(each) for each in super().forward(inputs)]

    def gradients(self) -> dict[str, Tensor]:
        """The gradients, each of them whole on every rank."""
        names = [each.name for each in self.program.results_of_kind("gradient")]
        own = super().gradients()
        held = {name: own.get(name, self.parameters[name].detach()) for name in names if self._is_anywhere(name, own)}
        return {name: _whole(each) for name, each in held.items()}

    def _is_anywhere(self, name: str, own: Mapping[str, Tensor]) -> bool:
        """Whether some process has this gradient: those of another stage have theirs when this one has its own."""
        return name in own or (name in self.parameters and not is_here(self.parameters[name]))

    def whole(self) -> dict[str, Tensor]:
        """The parameters, each of them whole on every rank."""
        return {name: _whole(each) for name, each in super().whole().items()}


def _checking(program: Program) -> Session:
    return ProcessRank(program, replicas=Replicas.CHECK)


def _given(arguments: Json) -> tuple[Program, int, int]:
    fields = Fields(arguments, "arguments")
    given = arguments.get("sizes", {}) if isinstance(arguments, Mapping) else {}
    sizes = {name: int(str(size)) for name, size in given.items()} if isinstance(given, Mapping) else {}
    return Program.load(fields.text("folder")).at(sizes), fields.whole("steps"), fields.whole("seed")


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _row(value: object, path: str) -> CheckRow:
    fields = Fields(value, path)
    return CheckRow(
        fields.text("kind"), fields.text("name"), _number(fields.raw("error"), path), Verdict(fields.text("verdict")),
        fields.text("note"),
    )  # fmt: skip


def _number(value: object, path: str) -> float:
    return float(str(value))
