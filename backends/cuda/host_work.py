"""Instructions for which the host must wait for the device, or make numbers itself: no CUDA graph may hold them."""

from __future__ import annotations

import torch

from ...runtime.program.ops import OWN_OPS, torch_op
from ...runtime.program.records import Instruction

_OF_THE_RANK = frozenset({"rank.random", "comm.all_to_all_rows_start"})
"""Random numbers are drawn with tables that the host makes; an exchange of counted rows reads its counts there."""
_TAGS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})
_SOLVERS = ("linalg_", "_linalg_", "cholesky", "lu_", "_lu", "triangular_solve", "ormqr", "geqrf", "_ctc_loss")
"""Beginnings of ops whose CUDA kernels read results on the host, such as whether a factorization succeeded."""


def is_host_work(instruction: Instruction) -> bool:
    """Whether the host waits for an instruction on a CUDA device."""
    if instruction.op in OWN_OPS:
        return instruction.op in _OF_THE_RANK
    if instruction.op.split(".")[1].startswith(_SOLVERS):
        return True
    return not _TAGS.isdisjoint(torch_op(instruction.op).overload.tags)
