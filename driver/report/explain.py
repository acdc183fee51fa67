"""Explain a program: placements, the communication of a step with its causes, and the remarks of the passes.

It reads the program folder only and needs no compiler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from ...runtime.lanes.names import named_lanes
from ...runtime.program.arguments import DTYPES, Json
from ...runtime.program.program import Program
from ...runtime.program.records import Input, Shard
from ...runtime.prover import Backend, Types, prove
from ...runtime.rank.shards import local_shape
from ..text.layer_names import family, folded
from .bound_kinds import BoundKind, bound_kinds
from .changed_function import changes
from .lanes import FunctionLanes, lanes_of
from .remarks import RemarkJson, is_implied, is_warning, remarks_of
from .stages import Stage, stages_of
from .traffic import Site, Traffic, gradients_from, place_of, stating_types, traffic_of


@dataclass(frozen=True)
class PlacedTensors:
    """Parameters, buffers or inputs with equal placement; those of repeated layers are folded to one name."""

    name: str
    """The model's name, with `*` for the numbers of folded layers."""
    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    """The global shape."""
    local_shape: tuple[int, ...]
    """The shape on each rank, padding included."""
    dtype: str
    shards: tuple[Shard, ...]
    bytes_per_rank: int
    """The local bytes of one of the tensors."""
    aliases: tuple[str, ...] = ()
    """Further names of a tied parameter."""
    stages: tuple[int, ...] | None = None
    """In a pipeline: the stages that hold it; None for all."""
    stored_over: tuple[str, ...] = ()
    """The axes that shard it where it is stored alone."""

    @property
    def placement(self) -> str:
        """The sharding: "dim 0 over tp", or "replicated"."""
        return "; ".join(_shard_text(shard) for shard in self.shards) or "replicated"

    @property
    def computed(self) -> str:
        """The sharding of what is computed with: the placement without the axes over which a use gathers."""
        kept = [replace(s, axes=tuple(a for a in s.axes if a not in self.stored_over)) for s in self.shards]
        return (
            "; ".join(f"dim {shard.dim} over {', '.join(shard.axes)}" for shard in kept if shard.axes) or "replicated"
        )

    @property
    def global_bytes(self) -> int:
        """The bytes of one of the tensors on a single device."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def to_json(self) -> dict[str, Json]:
        return {
            "name": self.name, "count": len(self.names), "names": list(self.names), "aliases": list(self.aliases),
            "kind": self.kind, "shape": list(self.shape), "local_shape": list(self.local_shape), "dtype": self.dtype,
            "placement": self.placement, "shards": [shard.to_json() for shard in self.shards],
            "computed": self.computed if self.stored_over else self.placement,
            "bytes_per_rank": self.bytes_per_rank, "stages": None if self.stages is None else list(self.stages),
        }  # fmt: skip


@dataclass(frozen=True)
class Communication:
    """Collectives or sends of one kind, over the same axes, with one cause."""

    backward: bool
    kind: str
    axes: tuple[str, ...]
    module: str
    """Path of the module that causes it, with `*` for the numbers of folded layers; empty for the model itself."""
    file: str
    line: int
    count: int
    """How many of them a rank runs in one step."""
    tensor_bytes: int
    """The sum of their tensors' bytes."""
    sent_bytes: int
    """The bytes that a rank sends in one step with ring algorithms."""
    gradients: tuple[str, ...] = ()
    """The parameters whose gradients they reduce; empty for other communication."""
    stage: int | None = None
    """In a pipeline: the stage whose ranks run them."""

    def to_json(self) -> dict[str, Json]:
        return {
            "phase": "backward" if self.backward else "forward", "kind": self.kind, "axes": list(self.axes),
            "count": self.count, "tensor_bytes": self.tensor_bytes, "sent_bytes": self.sent_bytes,
            "module": self.module, "file": self.file, "line": self.line, "gradients": list(self.gradients),
            "stage": self.stage,
        }  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """The content of `stretto explain`."""

    program: Program
    parameters: tuple[PlacedTensors, ...]
    others: tuple[PlacedTensors, ...]
    """Buffers, constants and inputs."""
    communication: tuple[Communication, ...]
    stages: tuple[Stage, ...] = ()
    """The stages of a pipeline; empty without one."""
    order: str = ""
    """Of a program that names lanes: whether their order is proved, as a proof by stated types says."""
    overlap: tuple[FunctionLanes, ...] = ()
    """What runs beside the communication of each function."""

    @property
    def lanes(self) -> dict[str, int]:
        """By lane that instructions name: how many do."""
        functions = self.program.functions.values()
        counts = Counter(step.lane for function in functions for step in function.code if step.lane)
        return dict(sorted(counts.items()))

    @property
    def kinds(self) -> tuple[BoundKind, ...]:
        """What runs on the program's target for functions with a kind."""
        return bound_kinds(self.program)

    @property
    def parameter_bytes(self) -> int:
        """The bytes of all parameters on a single device."""
        return sum(tensors.global_bytes * len(tensors.names) for tensors in self.parameters)

    @property
    def parameter_bytes_per_rank(self) -> int:
        """The parameter bytes of one rank, padding included; in a pipeline, of the stage with the most."""
        if self.stages:
            return max(stage.parameter_bytes for stage in self.stages)
        return sum(tensors.bytes_per_rank * len(tensors.names) for tensors in self.parameters)

    def count(self, *, sharded: bool) -> int:
        """The number of sharded, or of replicated, parameters."""
        return sum(len(tensors.names) for tensors in self.parameters if bool(tensors.shards) is sharded)

    @property
    def totals(self) -> list[tuple[str, tuple[str, ...], int, int]]:
        """(kind, axes, count, bytes sent) of a step, for each kind over each set of axes.

        For one rank; in a pipeline, the sums over one rank of each stage.
        """
        sums: dict[tuple[str, tuple[str, ...]], tuple[int, int]] = {}
        for communication in self.communication:
            count, sent = sums.get((communication.kind, communication.axes), (0, 0))
            sums[communication.kind, communication.axes] = (
                count + communication.count,
                sent + communication.sent_bytes,
            )
        return [(kind, axes, count, sent) for (kind, axes), (count, sent) in sums.items()]

    @property
    def without_rule(self) -> list[RemarkJson]:
        """Remarks about ops without a sharding rule."""
        return [remark for remark in remarks_of(self.program) if _misses_rule(remark)]

    @property
    def avoidable(self) -> list[RemarkJson]:
        """Remarks about redistributions of activations that a statement would avoid."""
        return [remark for remark in remarks_of(self.program) if _is_avoidable(remark)]

    @property
    def merged(self) -> list[RemarkJson]:
        """Remarks about operations that take the rows of several dims as one, so that ranks gather them."""
        return [remark for remark in remarks_of(self.program) if _merges(remark)]

    @property
    def warnings(self) -> list[RemarkJson]:
        """Remarks about statements of the plan without effect."""
        return [remark for remark in remarks_of(self.program) if is_warning(remark)]

    @property
    def recomputed(self) -> list[tuple[str, str]]:
        """Each statement about what the backward computes again, and what came of it."""
        found = [r for r in remarks_of(self.program) if r.get("pass") == "recompute" and r.get("kind") == "applied"]
        plans = [(r.get("plan"), str(r.get("message"))) for r in found]
        return [(str(plan["text"]) if isinstance(plan, Mapping) else "", message) for plan, message in plans]

    @property
    def other_remarks(self) -> list[RemarkJson]:
        """All other remarks."""
        return [
            remark
            for remark in remarks_of(self.program)
            if not (_misses_rule(remark) or _is_avoidable(remark) or _merges(remark))
            and not (is_warning(remark) or is_implied(remark))
        ]

    @property
    def implied(self) -> list[str]:
        """The statements that the plan does not write out."""
        return [str(remark.get("message")) for remark in remarks_of(self.program) if is_implied(remark)]

    def to_json(self) -> dict[str, Json]:
        """One JSON object; sizes are in bytes."""
        manifest = self.program.manifest
        about = manifest.to_json()
        return {
            **{key: about[key] for key in ("mode", "dtype", "target", "stretto", "torch", "source")},
            "hash": self.program.hash,
            "mesh": dict(manifest.mesh),
            "implied": [*self.implied],
            "changes": [*changes(self.program)],
            "ranks": self.program.mesh.ranks,
            "kinds": [entry.to_json() for entry in self.kinds],
            "sizes": None if self.program.symbolic is None else self.program.symbolic.about(),
            "pipeline": None if self.program.pipeline is None else self.program.pipeline.to_json(),
            "stages": [entry.to_json() for entry in self.stages],
            "lanes": {**self.lanes},
            "order": self.order,
            "parameters": [entry.to_json() for entry in self.parameters],
            "parameters_sharded": self.count(sharded=True),
            "parameters_replicated": self.count(sharded=False),
            "parameter_bytes": self.parameter_bytes,
            "parameter_bytes_per_rank": self.parameter_bytes_per_rank,
            "others": [entry.to_json() for entry in self.others],
            "communication": [entry.to_json() for entry in self.communication],
            "totals": [
                {"kind": kind, "axes": list(axes), "count": count, "sent_bytes": sent}
                for kind, axes, count, sent in self.totals
            ],
            "overlap": [entry.to_json() for entry in self.overlap],
            "recomputed": [{"statement": text, "message": message} for text, message in self.recomputed],
            "avoidable": [dict(entry) for entry in self.avoidable],
            "merged": [dict(entry) for entry in self.merged],
            "warnings": [dict(entry) for entry in self.warnings],
            "without_rule": [dict(entry) for entry in self.without_rule],
            "remarks": [dict(entry) for entry in self.other_remarks],
        }


def explain(program: Program) -> Explanation:
    """The explanation of a program, without running it."""
    kinds = ("buffer", "state", "constant", "input")
    traffic = traffic_of(program)
    return Explanation(
        program,
        _placed(program.of_kind("parameter")),
        _placed([tensor for kind in kinds for tensor in program.of_kind(kind)]),
        _communication(program, traffic),
        stages_of(program, traffic),
        _order(program),
        lanes_of(program),
    )


def _order(program: Program) -> str:
    """What a proof says of a program that names lanes; nothing of others, whose proof is left to `verify`."""
    if not named_lanes(program.functions.values()):
        return ""
    verdict = prove(stating_types(program), types=Types.STATED, backend=Backend.GLOO)
    if verdict.counterexample is not None:
        return f"refuted, {verdict.counterexample.code}: see stretto verify"
    return "safe under gloo only" if verdict.only_under_gloo else "safe"


def _misses_rule(remark: RemarkJson) -> bool:
    return remark.get("pass") == "propagate-placements" and remark.get("kind") == "missed"


def _merges(remark: RemarkJson) -> bool:
    return remark.get("pass") == "keep-dims-apart" and remark.get("kind") == "missed"


def _is_avoidable(remark: RemarkJson) -> bool:
    return remark.get("pass") == "propagate-placements" and remark.get("kind") == "note"


def _placed(tensors: Sequence[Input]) -> tuple[PlacedTensors, ...]:
    groups: dict[tuple[object, ...], list[Input]] = {}
    for tensor in tensors:
        key = (
            family(tensor.name),
            tensor.kind,
            tensor.shape,
            tensor.dtype,
            tensor.shards,
            tensor.stages,
            tensor.stored_over,
            len(tensor.aliases),
        )
        groups.setdefault(key, []).append(tensor)
    return tuple(_group(members) for members in groups.values())


def _group(members: Sequence[Input]) -> PlacedTensors:
    first, names = members[0], [tensor.name for tensor in members]
    on_rank = local_shape(first.shape, first.shards)
    bytes_per_rank = prod(on_rank) * DTYPES[first.dtype].itemsize
    aliases = tuple(name for tensor in members for name in tensor.aliases if name != tensor.name)
    return PlacedTensors(
        folded(names), tuple(names), first.kind, first.shape, on_rank, first.dtype, first.shards, bytes_per_rank,
        aliases, first.stages, first.stored_over,
    )  # fmt: skip


def _shard_text(shard: Shard) -> str:
    """The sharding of one dim; "(uneven)" where the last chunks are padded."""
    text = f"dim {shard.dim} over {', '.join(shard.axes)}"
    if shard.blocks:
        return f"{text}, in {len(shard.blocks)} blocks"
    return text if shard.extent % shard.chunk == 0 else f"{text} (uneven)"


@dataclass(frozen=True)
class _Cause:
    """What the communication of one row has in common."""

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
    rows = [_communication_of(cause, members, traffic) for cause, members in groups.items()]
    return tuple(sorted(rows, key=lambda row: (row.backward, bool(row.gradients), row.stage or 0)))


def _communication_of(
    cause: _Cause, members: Sequence[tuple[Site, str, tuple[str, ...]]], traffic: Traffic
) -> Communication:
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
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return module


def _layer(module: str) -> str:
    return family(_layer_path(module))
