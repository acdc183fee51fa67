"""The table of ops: what may run. A name outside it is refused, so that a program is data, never code.

In the table are functional ops without effects on files, libraries, memory layout or global state. Out of it: ops that
write to arguments or take `out=`, views by strides, ops that draw from torch's generator, and those of sparse, nested,
quantized or foreign memory. It is a list of names in a text file and no rule over schemas, because a schema does not
tell an effect (`aten::from_file` has no annotation), and a new torch adds ops that nobody has looked at. It is read
once in a process, in about a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import torch

from . import grouped_mm  # noqa: F401  # registers its ops with torch
from .allowed import allowed_op

TABLE_FILE = Path(__file__).with_name("op_table.txt")


class Layout(StrEnum):
    """What the kernel of an op takes for granted of the strides of its operands."""

    ANY = "any"
    LAST_DIM = "last-dim"
    """The stride of the last dim is 1."""
    MATRIX = "matrix"
    """The last two dims are a row-major or column-major matrix, its rows or columns aligned to 16 bytes."""
    CONTIGUOUS = "contiguous"
    """All elements are dense and row-major."""


@dataclass(frozen=True)
class OpEntry:
    """What the table says of one op."""

    name: str
    layout: Layout = Layout.ANY
    only_in_references: bool = False
    """Whether it may stand only in the reference, which runs eagerly and writes to copies of buffers."""


@cache
def op_table() -> dict[str, OpEntry]:
    """The ops of the table by name ("aten.mm.default"), without those that the caller allows beside them."""
    lines = TABLE_FILE.read_text(encoding="utf-8").splitlines()
    entries = (_entry(line) for line in lines if line and not line.startswith("#"))
    return {entry.name: entry for entry in entries}


def find_op(name: str) -> OpEntry | None:
    """What is said of an op that a program may call; None for any other name."""
    entry = op_table().get(name)
    if entry is None and allowed_op(name) is not None:
        # The code of a custom op is unknown: it is given the layout that its author has most likely tested.
        return OpEntry(name, Layout.CONTIGUOUS)
    return entry


def in_layout(value: object, layout: Layout) -> object:
    """An operand, or a list of operands, in the layout that an op needs: copied only where the strides differ."""
    if isinstance(value, torch.Tensor):
        return _tensor_in_layout(value, layout)
    if isinstance(value, list | tuple):
        return [in_layout(item, layout) for item in value]
    return value


def _tensor_in_layout(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
    if layout is Layout.CONTIGUOUS or (layout is Layout.MATRIX and not _is_matrix(tensor)):
        return tensor.contiguous()
    if layout is Layout.LAST_DIM and tensor.dim() and tensor.shape[-1] != 1 and tensor.stride(-1) != 1:
        return tensor.contiguous()
    return tensor


def _is_matrix(tensor: torch.Tensor) -> bool:
    if tensor.dim() < 2:
        return tensor.is_contiguous()
    (rows, columns), (row_step, column_step) = tensor.shape[-2:], tensor.stride()[-2:]
    by_rows = column_step == 1 and row_step >= columns and row_step * tensor.element_size() % 16 == 0
    return by_rows or (row_step == 1 and column_step >= rows and column_step * tensor.element_size() % 16 == 0)


def _entry(line: str) -> OpEntry:
    name, *marks = line.split()
    layouts = [Layout(mark) for mark in marks if mark != "reference"]
    return OpEntry(name, layouts[0] if layouts else Layout.ANY, "reference" in marks)
