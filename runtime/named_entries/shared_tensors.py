"""What entries share: a parameter, buffer or state of one name is one tensor, with one placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import ProgramError
from ..program.mesh import RankMesh
from ..program.program import Program
from ..program.records import Input, Shard

SHARED = ("parameter", "buffer", "state")
"""Kinds of inputs that the entries of a folder have together."""


def check_shared(programs: Mapping[str, Program]) -> None:
    """Raise ProgramError E0316 where entries differ in their mesh, or in a tensor that they share."""
    seen: dict[str, tuple[str, Input]] = {}
    first = next(iter(programs))
    for entry, program in programs.items():
        mesh, other = program.mesh, programs[first].mesh
        if mesh.axes != other.axes or program.manifest.target != programs[first].manifest.target:
            raise _differ(
                "the entries have other ranks",
                (first, f"{_mesh_text(other)} on {programs[first].manifest.target}"),
                (entry, f"{_mesh_text(mesh)} on {program.manifest.target}"),
                "compile all entries under one plan",
            )
        for record in program.inputs:
            if record.kind not in SHARED:
                continue
            known_in, known = seen.setdefault(record.name, (entry, record))
            if _placed(known) != _placed(record):
                raise _differ(
                    f"{known.kind} '{record.name}' is not the same in all entries",
                    (known_in, _text(known)),
                    (entry, _text(record)),
                    'compile all entries under one plan and from one model; `shard "GLOB"` places parameters, '
                    '`shard buffers "GLOB"` buffers and states',
                )


def first_values(programs: Mapping[str, Program]) -> dict[str, Tensor]:
    """The values that programs have of what they share. Raises ProgramError E0316 where two have another one."""
    values: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for entry, program in programs.items():
        weights = program.weights
        for record in program.inputs:
            if record.kind not in SHARED or record.name not in weights:
                continue
            value = weights[record.name]
            known = values.setdefault(record.name, value)
            known_in = origin.setdefault(record.name, entry)
            if not _same(known, value):
                raise ProgramError(
                    "E0316",
                    f"{record.kind} '{record.name}' has one first value in entry '{known_in}' and another in '{entry}'",
                    expected="one value of what entries share",
                    help="compile all entries from one model before it is changed",
                )
    return values


def _placed(record: Input) -> tuple[object, ...]:
    """What must be equal of a tensor in all entries. Computed placements may differ."""
    return record.kind, record.shape, record.dtype, record.shards, record.stages


def _same(a: Tensor, b: Tensor) -> bool:
    if a.data_ptr() == b.data_ptr() and (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype):
        return True
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def _differ(what: str, one: tuple[str, str], other: tuple[str, str], help: str) -> ProgramError:
    placed = "; ".join(f"in '{entry}' {text}" for entry, text in (one, other))
    return ProgramError(
        "E0316",
        f"{what}: {placed}",
        expected="entries that share their parameters and states, in one placement, shape and dtype",
        help=help,
    )


def _text(record: Input) -> str:
    """A tensor as an error shows it.

    >>> _text(Input("k", "state", (2, 4), "float32", 0, (Shard(1, ("tp",), 2, 4),)))
    'a state, float32 [2, 4], dim 1 over tp'
    """
    stages = f", of stages {list(record.stages)}" if record.stages is not None else ""
    return f"a {record.kind}, {record.dtype} {list(record.shape)}, {_shards_text(record.shards)}{stages}"


def _shards_text(shards: Sequence[Shard]) -> str:
    texts = []
    for shard in shards:
        blocks = f" in blocks of {', '.join(map(str, shard.blocks))}" if shard.blocks else ""
        texts.append(f"dim {shard.dim} over {', '.join(shard.axes)}{blocks}")
    return "; ".join(texts) or "replicated"


def _mesh_text(mesh: RankMesh) -> str:
    return f"mesh ({', '.join(f'{axis}={size}' for axis, size in mesh.axes)})"
