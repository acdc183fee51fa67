"""The program's side of a check as a script has it: `load_program`, and calls by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..loaded_program import LoadedProgram
from ..named_entries.program_set import ProgramSet
from ..program.entries import MAIN
from ..session import Session
from .model_and_program import AllRanks, Key, rng_state


class LoadedSide(AllRanks):
    """A program for inference on the ranks of a session. The loaded program counts the draws and writes buffers."""

    def __init__(self, session: Session, values: Mapping[Key, Tensor]) -> None:
        super().__init__(session, values)
        first = {**self.parameters, **self.buffers}
        self._loaded = LoadedProgram(ProgramSet({MAIN: self.program}), first, start=lambda _program: session)
        self._loaded.rng_state = rng_state(0)
        self.buffers = {name: self._loaded.tensors[name] for name in self.buffers}

    def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
        """The outputs for inputs by index. They are given in another order than the program's."""
        return self._loaded.run(MAIN, **{each.name: inputs[each.index] for each in reversed(self._inputs)})
