"""The entries of a program folder, ready to be called: one set of ranks, parameters and states for all of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from .errors import RunError
from .named_entries.program_set import ProgramSet
from .named_entries.shared_tensors import SHARED
from .philox import RngState
from .processes.parameters import distribute_parameter
from .processes.session import ProcessRank
from .processes.world import is_launched, join
from .program.program import Program
from .program.records import Input
from .rank.autograd import run
from .session import Session
from .threads.session import RankThreads

_MOST_BOUND = 32
"""Sessions for other sizes that are kept; past it the oldest is dropped."""


class LoadedProgram:
    """The entries of a program with their ranks.

    Ranks are threads of this process, or the processes that torchrun started. Then parameters and states are DTensors,
    of which each process has its part, and all processes make the same calls.
    """

    def __init__(
        self,
        programs: ProgramSet,
        values: Mapping[str, Tensor] | None = None,
        *,
        start: Callable[[Program], Session] | None = None,
    ) -> None:
        """`values` are first values by name, before those of the folder. Raises RunError E0318 where one is missing.

        `start` makes the ranks of a program; by default they share the threads or the processes of the first.
        """
        self.programs = programs
        self._start = start or self._started
        self.rng_state = RngState()
        """The RNG state of the next call that draws random numbers; each of them advances it."""
        self._sessions: dict[str, Session] = {}
        self._bound: dict[tuple[str, tuple[tuple[str, int], ...]], Session] = {}
        """Sessions for other sizes than those that an entry was compiled for."""
        for entry, program in programs:
            self._sessions[entry] = self._start(program)
        records = {each.name: each for _, program in programs for each in program.inputs if each.kind in SHARED}
        given = {**programs.first_values, **(values or {})}
        self.tensors: Mapping[str, Tensor] = {name: self._placed(each, given) for name, each in records.items()}
        """Parameters, buffers and states by name. An entry changes buffers and states in place; so may the caller."""

    @property
    def entries(self) -> tuple[str, ...]:
        """The names of the entries."""
        return tuple(self._sessions)

    @property
    def copied_state_bytes(self) -> int:
        """The bytes of states that were copied, not written in place, on all ranks of this process."""
        sessions = (*self._sessions.values(), *self._bound.values())
        own = (each for each in sessions if isinstance(each, RankThreads | ProcessRank))
        return sum(each.copied_state_bytes for each in own)

    def run(self, entry: str, **inputs: Tensor) -> list[Tensor]:
        """The results of an entry for global inputs by name; its buffers and states get their new values.

        Where the program has named sizes, the inputs may have any sizes for which it is valid.
        Results are in the order in which the model returns its tensors. Raises ProgramError E0319 for an unknown entry,
        RunError E0310 for missing or unknown inputs, ProgramError E0309 for sizes, and those of the step.
        """
        program = self.programs.program(entry)
        ordered = _in_order(entry, program, inputs)
        session = self._session(entry, program, inputs)
        kinds = {kind: program.of_kind(kind) for kind in ("parameter", "buffer", "state")}
        held = {kind: [self.tensors[each.name] for each in records] for kind, records in kinds.items()}
        if program.of_kind("random"):
            session.rng_state = self.rng_state
            self.rng_state = replace(self.rng_state, step=self.rng_state.step + 1)
        outputs, changed = run(session, held["parameter"], held["buffer"], ordered, states=held["state"])
        with torch.no_grad():
            for name, value in changed.items():
                self.tensors[name].copy_(value)
        return outputs

    def _session(self, entry: str, program: Program, inputs: Mapping[str, Tensor]) -> Session:
        """The session of an entry, for the named sizes that the inputs have."""
        symbolic = program.symbolic
        if symbolic is None:
            return self._sessions[entry]
        shapes = [inputs[each.name].shape if each.kind == "input" else None for each in program.inputs]
        sizes = symbolic.in_call(shapes)
        if all(sizes[each.name] == each.example for each in symbolic.names):
            return self._sessions[entry]
        key = entry, tuple(sizes.items())
        if key not in self._bound:
            if len(self._bound) == _MOST_BOUND:
                del self._bound[next(iter(self._bound))]
            self._bound[key] = self._start(program.bind(sizes))
        return self._bound[key]

    def _started(self, program: Program) -> Session:
        """The ranks of a program: those of the first."""
        if is_launched():
            return ProcessRank(program)
        beside = next((each for each in self._sessions.values() if isinstance(each, RankThreads)), None)
        return RankThreads(program, beside=beside)

    def full_tensor(self, name: str) -> Tensor:
        """The global value of a parameter, buffer or state. With processes all of them must call this."""
        tensor = self.tensors[name].detach()
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def close(self) -> None:
        """Release threads and connections."""
        for session in self._sessions.values():
            session.close()

    def __enter__(self) -> LoadedProgram:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _placed(self, record: Input, given: Mapping[str, Tensor]) -> Tensor:
        """A tensor of this program with its first value, where ranks are processes this one's part of it."""
        value = given.get(record.name)
        if value is None:
            raise RunError(
                "E0318",
                f"the program has no value for {record.kind} '{record.name}'",
                expected=f"{record.dtype} {list(record.shape)}",
                help=f"load_program(folder, values={{'{record.name}': tensor}}), or compile a model that has values",
            )
        if record.kind == "parameter":
            value = value.detach().requires_grad_(record.requires_grad)
        else:
            value = value.detach().clone()
        program = next(each for _, each in self.programs if record in each.inputs)
        if not is_launched() or (record.kind != "parameter" and not _has_even_parts(record, program)):
            return value
        world = join()
        return distribute_parameter(value, record.shards, world, program.mesh, program.owning_stage(record))


def _has_even_parts(record: Input, program: Program) -> bool:
    """Whether a buffer is a state whose parts have no padding and no blocks; others stay whole in every process."""
    even = (not s.blocks and s.chunk * program.mesh.size(s.axes) == s.extent for s in record.shards)
    return record.kind == "state" and all(even)


def load_program(
    folder: str | Path, values: Mapping[str, Tensor] | None = None, *, target: str | None = None
) -> LoadedProgram:
    """The program in a folder, to be called from a script; needs no compiler.

    `values` are first values by name, of what the folder has none or others. Ranks are threads of this process, or the
    processes that torchrun started. `target` is "cpu" or "cuda", where it is not the one of the compile. Raises
    ProgramError E0301 to E0306 and E0316, RunError E0318, E0364 where the target cannot run here.
    """
    return LoadedProgram(ProgramSet.load(folder).on(target), values)


def _in_order(entry: str, program: Program, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The inputs in the program's order. Raises RunError E0310."""
    names = [each.name for each in program.of_kind("input")]
    unknown = sorted(inputs.keys() - {*names})
    missing = [name for name in names if name not in inputs]
    if unknown or missing:
        near = difflib.get_close_matches(unknown[0], missing, 1) if unknown else []
        wrong = f"it has no input '{unknown[0]}'" if unknown else f"input '{missing[0]}' is missing"
        raise RunError(
            "E0310",
            f"entry '{entry}' cannot be called with these inputs: {wrong}",
            expected=", ".join(names) or "no inputs",
            help=f"did you mean '{near[0]}'?" if near else "",
        )
    return [inputs[name] for name in names]
