"""Whether a program's own tensors and ranks fit on this machine: asked before memory is taken for random values."""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import prod

from ..errors import RunError
from ..program.arguments import DTYPES
from ..program.program import Program
from ..program.records import Input
from ..program.reference_records import ReferenceInput

MOST_RANKS = 4096
"""The most ranks that one machine runs, as threads or as processes."""


def refuse_beyond_machine(program: Program) -> None:
    """Raise RunError E0344 where inputs, parameters and buffers take more memory than the machine has."""
    if program.mesh.ranks > MOST_RANKS:
        raise RunError(
            "E0344",
            f"the program has {program.mesh.ranks} ranks, too many for one machine",
            expected=f"at most {MOST_RANKS}",
            help="`stretto verify DIR` and `stretto explain DIR` need no ranks",
        )
    reference = program.single_device
    needed = max(_bytes(program.inputs), _bytes(reference.inputs if reference else ()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise RunError(
            "E0344",
            f"the program's inputs, parameters and buffers take {needed:,} bytes, but the machine has {memory:,}",
            help="compile a smaller batch or fewer layers; `stretto verify DIR` needs no memory for them",
        )


def _bytes(tensors: Iterable[Input | ReferenceInput]) -> int:
    return sum(prod(tensor.shape) * DTYPES[tensor.dtype].itemsize for tensor in tensors)
