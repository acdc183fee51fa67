"""What is kept of an internal error: the IR at that point, in a file that the traceback names."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..ir.module import Module
from ..passes.manager import PassFailure


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
