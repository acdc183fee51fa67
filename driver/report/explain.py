"""What a program does, for a person: who holds what, what crosses which link and why, what the passes said.

Reads the program and nothing else; it needs no compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ...runtime.program.arguments import DTYPES, Json
from ...runtime.program.program import Program
from ...runtime.program.records import Input, Shard
from ...runtime.rank.shards import local_shape
from ..text.layer_names import family, folded
from .remarks import RemarkJson, is_warning, remarks_of
from .stages import Stage, stages_of
from .traffic import Site, Traffic, gradients_from, place_of, traffic_of


@dataclass(frozen=True)
class Placed:
    """Parameters, buffers or inputs that are placed alike: those of repeated layers, folded to one name."""

    name: str
    """The model's name, with `*` for the number of a folded layer."""
    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    """Of the global tensor."""
    local_shape: tuple[int, ...]
    """Of what each rank holds, padding included."""
    dtype: str
    shards: tuple[Shard, ...]
    bytes_per_rank: int
    """Of one of them."""
    aliases: tuple[str, ...] = ()
    """Further names of a tied parameter."""
    stages: tuple[int, ...] | None = None
    """In a pipeline: the stages that hold it; None: all."""

    @property
    def placement(self) -> str:
        """How it is cut: "dim 0 over tp", or "replicated"."""
        return "; ".join(_cut(shard) for shard in self.shards) or "replicated"

    @property
    def whole_bytes(self) -> int:
        """Of one of them, on one device."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def to_json(self) -> dict[str, Json]:
        return {
            "name": self.name, "count": len(self.names), "names": list(self.names), "aliases": list(self.aliases),
            "kind": self.kind, "shape": list(self.shape), "local_shape": list(self.local_shape), "dtype": self.dtype,
            "placement": self.placement, "shards": [shard.to_json() for shard in self.shards],
            "bytes_per_rank": self.bytes_per_rank, "stages": None if self.stages is None else list(self.stages),
        }  # fmt: skip


@dataclass(frozen=True)
class Communication:
    """Collectives, or sends, of one kind over the same axes with one cause."""

    backward: bool
    kind: str
    axes: tuple[str, ...]
    module: str
    """Path of the module that causes it, with `*` for the number of a folded layer; empty for the model itself."""
    file: str
    line: int
    count: int
    """How many a rank runs in one step."""
    tensor_bytes: int
    """Sum of the tensors' sizes over those."""
    sent_bytes: int
    """What a rank sends in one step when each is done as a ring."""
    gradients: tuple[str, ...] = ()
    """The parameters whose gradients these reduce; empty for anything else."""
    stage: int | None = None
    """In a pipeline: the stage whose ranks run these."""

    def to_json(self) -> dict[str, Json]:
        return {
            "phase": "backward" if self.backward else "forward", "kind": self.kind, "axes": list(self.axes),
            "count": self.count, "tensor_bytes": self.tensor_bytes, "sent_bytes": self.sent_bytes,
            "module": self.module, "file": self.file, "line": self.line, "gradients": list(self.gradients),
            "stage": self.stage,
        }  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """All that `stretto explain` says."""

    program: Program
    parameters: tuple[Placed, ...]
    others: tuple[Placed, ...]
    """Buffers, constants and inputs."""
    communication: tuple[Communication, ...]
    stages: tuple[Stage, ...] = ()
    """Where ranks take turns: what those of each stage have and do."""

    @property
    def parameter_bytes(self) -> int:
        """Of all parameters, on one device."""
        return sum(each.whole_bytes * len(each.names) for each in self.parameters)

    @property
    def parameter_bytes_per_rank(self) -> int:
        """Of all parameters' parts on one rank, padding included; in a pipeline, of the stage that has most."""
        if self.stages:
            return max(each.parameter_bytes for each in self.stages)
        return sum(each.bytes_per_rank * len(each.names) for each in self.parameters)

    def count(self, *, sharded: bool) -> int:
        """How many parameters are sharded, or replicated."""
        return sum(len(each.names) for each in self.parameters if bool(each.shards) is sharded)

    @property
    def totals(self) -> list[tuple[str, tuple[str, ...], int, int]]:
        """(kind, axes, count, bytes sent) of a whole step, for each kind over each set of axes.

        Of one rank, or of one rank of each stage together.
        """
        sums: dict[tuple[str, tuple[str, ...]], tuple[int, int]] = {}
        for each in self.communication:
            count, sent = sums.get((each.kind, each.axes), (0, 0))
            sums[each.kind, each.axes] = (count + each.count, sent + each.sent_bytes)
        return [(kind, axes, count, sent) for (kind, axes), (count, sent) in sums.items()]

    @property
    def without_rule(self) -> list[RemarkJson]:
        """Remarks about ops that no sharding rule covers."""
        return [each for each in remarks_of(self.program) if _misses_rule(each)]

    @property
    def warnings(self) -> list[RemarkJson]:
        """Remarks about what the plan says to no effect."""
        return [each for each in remarks_of(self.program) if is_warning(each)]

    @property
    def other_remarks(self) -> list[RemarkJson]:
        """All other remarks."""
        return [each for each in remarks_of(self.program) if not _misses_rule(each) and not is_warning(each)]

    def to_json(self) -> dict[str, Json]:
        """One JSON object; every size is in bytes."""
        manifest = self.program.manifest
        about = manifest.to_json()
        return {
            **{key: about[key] for key in ("mode", "dtype", "target", "stretto", "torch", "source")},
            "hash": self.program.hash,
            "mesh": dict(manifest.mesh),
            "ranks": self.program.mesh.ranks,
            "sizes": None if self.program.symbolic is None else self.program.symbolic.about(),
            "pipeline": None if self.program.pipeline is None else self.program.pipeline.to_json(),
            "stages": [each.to_json() for each in self.stages],
            "parameters": [each.to_json() for each in self.parameters],
            "parameters_sharded": self.count(sharded=True),
            "parameters_replicated": self.count(sharded=False),
            "parameter_bytes": self.parameter_bytes,
            "parameter_bytes_per_rank": self.parameter_bytes_per_rank,
            "others": [each.to_json() for each in self.others],
            "communication": [each.to_json() for each in self.communication],
            "totals": [
                {"kind": kind, "axes": list(axes), "count": count, "sent_bytes": sent}
                for kind, axes, count, sent in self.totals
            ],
            "warnings": [dict(each) for each in self.warnings],
            "without_rule": [dict(each) for each in self.without_rule],
            "remarks": [dict(each) for each in self.other_remarks],
        }


def explain(program: Program) -> Explanation:
    """Everything a program says about itself. It runs nothing."""
    kinds = ("buffer", "constant", "input")
    traffic = traffic_of(program)
    return Explanation(
        program,
        _placed(program.of_kind("parameter")),
        _placed([each for kind in kinds for each in program.of_kind(kind)]),
        _communication(program, traffic),
        stages_of(program, traffic),
    )


def _misses_rule(remark: RemarkJson) -> bool:
    return remark.get("pass") == "propagate-placements" and remark.get("kind") == "missed"


def _placed(tensors: Sequence[Input]) -> tuple[Placed, ...]:
    groups: dict[tuple[object, ...], list[Input]] = {}
    for each in tensors:
        key = (family(each.name), each.kind, each.shape, each.dtype, each.shards, each.stages, len(each.aliases))
        groups.setdefault(key, []).append(each)
    return tuple(_group(members) for members in groups.values())


def _group(members: Sequence[Input]) -> Placed:
    first, names = members[0], [each.name for each in members]
    local = local_shape(first.shape, first.shards)
    size = prod(local) * DTYPES[first.dtype].itemsize
    aliases = tuple(name for each in members for name in each.aliases if name != each.name)
    return Placed(
        folded(names), tuple(names), first.kind, first.shape, local, first.dtype, first.shards, size, aliases,
        first.stages,
    )  # fmt: skip


def _cut(shard: Shard) -> str:
    """How one dim is cut, with the last chunks' shortage when they do not come out even."""
    text = f"dim {shard.dim} over {', '.join(shard.axes)}"
    return text if shard.extent % shard.chunk == 0 else f"{text} (uneven)"


@dataclass(frozen=True)
class _Cause:
    """What stands in one row."""

    backward: bool
    kind: str
    axes: tuple[str, ...]
    module: str
    file: str
    line: int
    of_gradients: bool
    stage: int | None


def _communication(program: Program, traffic: Traffic) -> tuple[Communication, ...]:
    groups: dict[_Cause, list[tuple[Site, str, tuple[str, ...]]]] = {}
    for site in traffic:
        gradients = gradients_from(program, site)
        place = place_of(program, site)
        owners = [name.rpartition(".")[0] for name in gradients] or [place.module]
        file, line = ("", 0) if gradients else (place.file, place.line)
        module = _layer(owners[0]) if gradients else family(place.module)
        cause = _Cause(site.backward, site.kind, site.axes, module, file, line, bool(gradients), site.stage)
        path = _layer_path(owners[0]) if gradients else place.module
        groups.setdefault(cause, []).append((site, path, gradients))
    rows = [_row(cause, members, traffic) for cause, members in groups.items()]
    return tuple(sorted(rows, key=lambda row: (row.backward, bool(row.gradients), row.stage or 0)))


def _row(cause: _Cause, members: Sequence[tuple[Site, str, tuple[str, ...]]], traffic: Traffic) -> Communication:
    counts = [(traffic[site], site) for site, _, _ in members]
    return Communication(
        backward=cause.backward,
        kind=cause.kind,
        axes=cause.axes,
        module=folded([path for _, path, _ in members]),
        file=cause.file,
        line=cause.line,
        count=sum(count for count, _ in counts),
        tensor_bytes=sum(count * site.tensor_bytes for count, site in counts),
        sent_bytes=sum(count * site.sent_bytes for count, site in counts),
        gradients=tuple(name for _, _, names in members for name in names),
        stage=cause.stage,
    )


def _layer_path(module: str) -> str:
    """The repeated layer that a module is in ("layers.3" of "layers.3.mlp.up"), else the module itself."""
    parts = module.split(".")
    for at, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: at + 1])
    return module


def _layer(module: str) -> str:
    return family(_layer_path(module))
