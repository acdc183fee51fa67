"""`stretto compile --dump-ir DIR`: the module as captured and as each pass leaves it, in files that `opt` reads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...ir.module import Module
from ...passes.manager import PassFailure, Step, single
from ...passes.pipeline_text import print_pipeline
from ..text.text_files import make_folder, write_text

PIPELINE = "pipeline.txt"
"""The passes, one a line; all of it is a pipeline too."""
CAPTURED = "00-captured.mlir"
"""The module before the first pass."""
_MODULES = "[0-9][0-9]-*.mlir"


@dataclass
class IrDump:
    """A folder of modules `00-captured.mlir`, `01-PASS.mlir` and so on."""

    folder: Path
    written: int = 0

    @staticmethod
    def start(folder: str) -> IrDump:
        """An empty dump; the modules and the pipeline of an earlier one are removed, nothing else. Errors: E0508."""
        made = make_folder(folder)
        for old in [*made.glob(_MODULES), *made.glob(PIPELINE)]:
            old.unlink()
        return IrDump(made)

    def write_pipeline(self, steps: Sequence[Step]) -> None:
        """Write which passes are going to run."""
        write_text(self.folder / PIPELINE, ",\n".join(print_pipeline([step]) for step in single(steps)) + "\n")

    def write(self, name: str, module: Module) -> None:
        """Write the module that a pass leaves; "captured" is the name before the first."""
        write_text(self.folder / f"{self.written:02}-{name}.mlir", module.text())
        self.written += 1


@contextmanager
def ir_of_failures(pass_help: str = "") -> Iterator[Callable[[Module], None]]:
    """Gives a function that is told of the module as it is rewritten; an internal error then says where its IR is.

    `pass_help` says how to run a pass that failed alone; "PASS" in it stands for the pass.
    """
    last: list[Module] = []

    def keep(module: Module) -> None:
        last[:] = [module]

    try:
        yield keep
    except (AssertionError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        if last:
            with tempfile.NamedTemporaryFile("w", prefix="stretto-", suffix=".mlir", delete=False) as file:
                file.write(last[0].text())
            error.add_note(f"The IR at that point is in {Path(file.name)}")
        if isinstance(error, PassFailure) and pass_help:
            error.add_note(f"help: {pass_help.replace('PASS', error.pass_name)}")
        raise
