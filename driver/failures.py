"""What is kept of an internal error: the IR at that point, in a file that the traceback names."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..ir.module import Module


@contextmanager
def ir_of_failures() -> Iterator[Callable[[Module], None]]:
    """Gives a function that is told of the module as it is rewritten; an internal error then says where its IR is."""
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
        raise
