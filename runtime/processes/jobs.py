"""Checking and running a program folder on processes of this machine.

A launcher calls `check_processes` and `run_processes_for`; every process runs `check_entry` or `steps_entry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor
from torch.distributed.tensor import DTensor

from ...ops.allowed import allow_ops
from ..checks.model_and_program import AllRanks, SingleDevice
from ..checks.program_check import Expected, check
from ..checks.report import CheckReport, CheckRow, Verdict
from ..checks.stated import Ranges
from ..checks.steps import StepsReport, run_steps
from ..devices import device_of_rank
from ..implementations.registry import use_implementations, used_implementations
from ..named_entries.program_set import load_entry
from ..program.arguments import Json
from ..program.ops import OWN_OPS
from ..program.program import Program
from ..program.records import Input
from ..rank.nan_watch import detect_anomaly
from ..reading.json_fields import Fields
from ..session import Session
from ..threads.session import Replicas
from .launch import run_processes
from .parameters import distribute_parameter, has_local_part
from .session import ProcessRank
from .world import join


def check_processes(
    folder: str | Path,
    *,
    steps: int = 3,
    seed: int = 0,
    entry: str = f"{__name__}:check_entry",
    sizes: Mapping[str, int] | None = None,
    against: str = "",
    ranges: Ranges | None = None,
    named_entry: str | None = None,
    target: str | None = None,
) -> CheckReport:
    """`check` with one process per rank and parameters that are DTensors; rank 0's report.

    `entry` names the function that every process runs; another one may call `check_process` with another reference.
    `sizes` are values for named sizes; the others are as compiled. `against` is for that other function: the reference
    that the caller names. `ranges` are those of `check`. `named_entry` is the entry of a folder that has several.
    `target` is another one than the folder was compiled for.
    """
    program = load_entry(folder, named_entry).on(target)
    device_of_rank(program.manifest.target)
    arguments: Json = {
        "folder": str(Path(folder).resolve()), "steps": steps, "seed": seed, "sizes": dict(sizes or {}),
        "allow_ops": _allowed_here(program), "implementations": used_implementations(), "against": against,
        "ranges": {name: list(bounds) for name, bounds in (ranges or {}).items()}, "named_entry": named_entry or "",
        "target": program.manifest.target,
    }  # fmt: skip
    reports = run_processes(entry, arguments, program.mesh.ranks)
    fields = Fields(reports[0], "report")
    return CheckReport(
        fields.list_of("rows", _row),
        fields.string("dtype"),
        fields.integer("steps"),
        fields.integer("seed"),
        fields.strings("regimes"),
    )


def run_processes_for(
    folder: str | Path,
    *,
    steps: int = 10,
    seed: int = 0,
    anomalies: bool = False,
    sizes: Mapping[str, int] | None = None,
    named_entry: str | None = None,
    target: str | None = None,
) -> StepsReport:
    """`run_steps` with one process per rank and parameters that are DTensors; rank 0's report.

    With `anomalies` every process looks for the first NaN (`detect_anomaly`). `named_entry` and `target`: see
    `check_processes`.
    """
    program = load_entry(folder, named_entry).on(target)
    device_of_rank(program.manifest.target)
    arguments: Json = {
        "folder": str(Path(folder).resolve()), "steps": steps, "seed": seed, "anomalies": anomalies,
        "sizes": dict(sizes or {}), "allow_ops": _allowed_here(program),
        "implementations": used_implementations(), "named_entry": named_entry or "", "target": program.manifest.target,
    }  # fmt: skip
    fields = Fields(run_processes(f"{__name__}:steps_entry", arguments, program.mesh.ranks)[0], "report")
    return StepsReport(
        fields.string("mode"),
        fields.list_of("losses", _number),
        fields.list_of("seconds", _number),
        fields.integer_or_null("tokens"),
    )


def check_entry(arguments: Json) -> Json:
    """One process of `check_processes`."""
    return check_process(arguments, lambda program: SingleDevice)


def check_process(arguments: Json, expected: Callable[[Program], Expected]) -> Json:
    """One process of a check against the side that `expected(program)` makes."""
    program, steps, seed = _read_arguments(arguments)
    single = expected(program)
    report = check(
        program,
        ranks=_checking_replicas,
        side=ProcessSide,
        expected=single,
        steps=steps,
        seed=seed,
        ranges=_ranges(Fields(arguments, "arguments").mapping_or("ranges", {})),
    )
    return report.to_json()


def steps_entry(arguments: Json) -> Json:
    """One process of `run_processes_for`."""
    program, steps, seed = _read_arguments(arguments)
    with detect_anomaly() if Fields(arguments, "arguments").boolean_or("anomalies", False) else nullcontext():
        return run_steps(program, ranks=ProcessRank, side=ProcessSide, steps=steps, seed=seed).to_json()


class ProcessSide(AllRanks):
    """The program's side of a check in one of its processes: parameters, gradients and states are DTensors."""

    def parameter(self, argument: Input, value: Tensor) -> Tensor:
        """The parameter as a DTensor of which this process has its part."""
        world, mesh = join(self.program.manifest.target), self.program.mesh
        home = self.program.owning_stage(argument)
        return distribute_parameter(
            value.clone().requires_grad_(argument.requires_grad), argument.shards, world, mesh, home
        )

    def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
        """The global outputs, on every rank."""
        return [_whole(output) for output in super().forward(inputs)]

    def gradients(self) -> dict[str, Tensor]:
        """The global gradients, on every rank."""
        names = [output.name for output in self.program.results_of_kind("gradient")]
        local_gradients = super().gradients()
        gradients = {
            name: local_gradients.get(name, self.parameters[name].detach())
            for name in names
            if self._is_anywhere(name, local_gradients)
        }
        return {name: _whole(gradient) for name, gradient in gradients.items()}

    def _is_anywhere(self, name: str, local_gradients: Mapping[str, Tensor]) -> bool:
        """Whether some process has this gradient. Other stages have theirs whenever this one has its own."""
        return name in local_gradients or (name in self.parameters and not has_local_part(self.parameters[name]))

    def whole(self) -> dict[str, Tensor]:
        """The global parameters, on every rank."""
        return {name: _whole(parameter) for name, parameter in super().whole().items()}


def _checking_replicas(program: Program) -> Session:
    return ProcessRank(program, replicas=Replicas.CHECK)


def _read_arguments(arguments: Json) -> tuple[Program, int, int]:
    fields = Fields(arguments, "arguments")
    raw_sizes = arguments.get("sizes", {}) if isinstance(arguments, Mapping) else {}
    sizes = {name: int(str(size)) for name, size in raw_sizes.items()} if isinstance(raw_sizes, Mapping) else {}
    allow_ops(*(fields.strings("allow_ops") if isinstance(arguments, Mapping) and "allow_ops" in arguments else ()))
    use_implementations(*fields.strings_or("implementations", ()))
    entry = fields.string_or("named_entry", "") or None
    program = load_entry(fields.string("folder"), entry).on(fields.string_or("target", "") or None)
    return program.at(sizes), fields.integer("steps"), fields.integer("seed")


def _allowed_here(program: Program) -> list[str]:
    """The program's ops of libraries, which this process allows: its processes get the word of the same caller."""
    references = tuple(program.single_device.all_code()) if program.single_device is not None else ()
    codes = [*(function.code for function in program.functions.values()), references]
    names = {instruction.op for code in codes for instruction in code if instruction.op not in OWN_OPS}
    foreign = sorted(name.rpartition(".")[0] for name in names if not name.startswith(("aten.", "stretto.")))
    return [name.replace(".", "::") for name in foreign]


def _ranges(listed: Mapping[str, object]) -> dict[str, tuple[int, int]]:
    return {
        name: (int(str(bounds[0])), int(str(bounds[1]))) for name, bounds in listed.items() if isinstance(bounds, list)
    }


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _row(value: object, path: str) -> CheckRow:
    fields = Fields(value, path)
    return CheckRow(
        fields.string("kind"), fields.string("name"), _number(fields.raw("error"), path),
        Verdict(fields.string("verdict")), fields.string("note"),
    )  # fmt: skip


def _number(value: object, path: str) -> float:
    return float(str(value))
