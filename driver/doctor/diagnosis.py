"""The diagnosis of a model: a starting plan, the names of its parameters, and why some of them stay replicated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from ...dsl.plan import Plan
from ...dsl.resolve import OwnerKind, ParameterInfo, resolve_parameters
from ...frontend.capture.capture import capture
from ...frontend.capture.model_parameters import parameter_infos
from ...frontend.captured import Mode
from ...frontend.targets.load_target import load_target
from ...frontend.targets.target import Request, Target
from ...frontend.to_ir import to_module
from ...passes.manager import PassManager
from ...passes.normalize.raise_idioms import RaiseIdioms
from ...runtime.program.arguments import Json, dtype_name
from ...runtime.program.program import Program
from ..compile.compile_program import compile_program
from ..compile.request import CompileRequest, Options
from ..report.remarks import RemarkJson, is_warning, remarks_of
from ..text.console import progress
from ..text.layer_names import family
from .linear_layers import MIXTURE, LayerGraph, layer_graph
from .starting_plan import StartingPlan, roles_of, starting_plan

_STAGES = ("target", "capture", "layers", "compile")


@dataclass(frozen=True)
class DoctorJob:
    """The arguments of `stretto doctor`; `data` and `tensor` are the sizes of the plan's mesh."""

    target: str
    mode: str = "train"
    dtype: str | None = None
    batch: int | None = None
    seq: int | None = None
    data: int = 2
    tensor: int = 2


@dataclass(frozen=True)
class Finding:
    """Equal parameters of repeated layers: their names, and what the plan does with them."""

    name: str
    """With `*` for layer numbers."""
    names: tuple[str, ...]
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    kind: str
    """The kind of the module that owns it: linear, linear_transposed, embedding or other."""
    role: str
    """The role by which the plan shards its layer: columns, rows or vocab; empty where the plan does not."""
    why: str
    """Why it is replicated; empty where it is sharded."""

    def to_json(self) -> dict[str, Json]:
        return {
            "name": self.name, "count": len(self.names), "names": list(self.names), "aliases": list(self.aliases),
            "shape": list(self.shape), "kind": self.kind, "role": self.role, "why_whole": self.why,
        }  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """The content of `stretto doctor`."""

    job: DoctorJob
    model: str
    """The name of the model's class."""
    inputs: Mapping[str, tuple[tuple[int, ...], str]]
    """Shape and dtype of each tensor of the example call."""
    findings: tuple[Finding, ...]
    plan: StartingPlan
    program: Program
    """The model compiled under the plan, without weights."""
    note: str = ""
    """Why the plan's mesh is not the requested one; empty where it is."""

    @property
    def parameters(self) -> int:
        """The number of elements of all parameters."""
        return sum(prod(finding.shape) * len(finding.names) for finding in self.findings)

    @property
    def sharded(self) -> int:
        """The number of elements of the parameters that the plan shards."""
        return sum(prod(finding.shape) * len(finding.names) for finding in self.findings if not finding.why)

    @property
    def without_rule(self) -> list[RemarkJson]:
        """Remarks about ops that every rank computes because no sharding rule covers them."""
        return [remark for remark in remarks_of(self.program) if "no sharding rule" in str(remark.get("message"))]

    @property
    def warnings(self) -> list[RemarkJson]:
        """Remarks about statements of the plan without effect."""
        return [remark for remark in remarks_of(self.program) if is_warning(remark)]

    def to_json(self) -> dict[str, Json]:
        """One JSON object."""
        inputs: dict[str, Json] = {n: {"shape": list(s), "dtype": d} for n, (s, d) in self.inputs.items()}
        return {
            "target": self.job.target, "model": self.model, "inputs": inputs, "parameters": self.parameters,
            "cut": self.sharded, "findings": [entry.to_json() for entry in self.findings],
            "without_rule": [dict(entry) for entry in self.without_rule], "plan": self.plan.text,
        }  # fmt: skip


def diagnose(job: DoctorJob) -> Diagnosis:
    """Capture the model, propose a plan, and compile it under that plan.

    Errors: TargetError and CaptureError, as of `stretto compile`.
    """
    mode = Mode(job.mode)
    with progress(len(_STAGES)) as bar:
        bar.show("target", 0)
        sizes = {key: value for key, value in (("batch", job.batch), ("seq", job.seq)) if value is not None}
        target = load_target(job.target, Request(mode=mode, dtype=job.dtype, **{"batch": job.data, **sizes}))
        tensors = {name: tensor for name, tensor in target.inputs.items() if isinstance(tensor, torch.Tensor)}
        infos = parameter_infos(target.model)
        bar.show("capture", 1)
        graph = _layers(target, infos)
        bar.show("layers", 2)
        roles = roles_of(graph)
        data, tensor = (job.data, job.tensor) if roles else (job.data * job.tensor, 1)
        wanted, data = data, _shared_batch(data, list(tensors.values()))
        note = f"dp={data} instead of {wanted}: the example's batch does not divide by {wanted}"
        title = f"a starting plan for {type(target.model).__name__}, by `stretto doctor`"
        plan = starting_plan(title, roles, infos, data, tensor)
        bar.show("compile", 3)
        program = _compiled(target, Plan.parse(plan.text), mode)
    findings = tuple(_findings(infos, plan, graph))
    inputs = {name: (tuple(tensor.shape), dtype_name(tensor.dtype)) for name, tensor in tensors.items()}
    return Diagnosis(job, type(target.model).__name__, inputs, findings, plan, program, note if data != wanted else "")


def _layers(target: Target, infos: Sequence[ParameterInfo]) -> LayerGraph:
    """The linear layers of the forward; the backward does not change which layer feeds which."""
    captured = capture(target.model, (), target.inputs, mode=Mode.INFER)
    module = to_module(captured, {info.name: str(info.owner_kind) for info in infos})
    PassManager([RaiseIdioms()]).run(module)
    return layer_graph(module)


def _shared_batch(ranks: int, tensors: Sequence[torch.Tensor]) -> int:
    """The largest number of data-parallel ranks, at most `ranks`, that divides the example's batch."""
    batch = next((tensor.shape[0] for tensor in tensors if tensor.dim()), 1)
    return max(n for n in range(1, ranks + 1) if batch % n == 0)


def _compiled(target: Target, plan: Plan, mode: Mode) -> Program:
    options = Options(mode=mode, loss_only=mode is Mode.TRAIN, keep_weights=False)
    return compile_program(CompileRequest.of(target.model, (), target.inputs, plan, options)).program


def _findings(infos: Sequence[ParameterInfo], plan: StartingPlan, graph: LayerGraph) -> list[Finding]:
    placements = resolve_parameters(Plan.parse(plan.text), infos)
    groups: dict[tuple[object, ...], list[ParameterInfo]] = {}
    for info, placement in zip(infos, placements, strict=True):
        role = _role(info, plan)
        why = "" if placement.dims else _why_whole(info, role, graph)
        aliases = tuple(family(name) for name in info.names[1:])
        key = (family(info.name), info.shape, str(info.owner_kind), role, why, aliases)
        groups.setdefault(key, []).append(info)
    return [
        Finding(
            name=family(equal[0].name) if len(equal) > 1 else equal[0].name,
            names=tuple(info.name for info in equal),
            aliases=tuple(dict.fromkeys(alias for info in equal for alias in info.names[1:])),
            shape=equal[0].shape,
            kind=str(equal[0].owner_kind),
            role=str(key[3]),
            why=str(key[4]),
        )
        for key, equal in groups.items()
    ]


def _role(info: ParameterInfo, plan: StartingPlan) -> str:
    """The role by which the plan shards the layer that owns a parameter."""
    owner = info.name.rpartition(".")[0]
    return next((role for name, role in plan.roles.items() if name.rpartition(".")[0] == owner), "")


def _why_whole(info: ParameterInfo, role: str, graph: LayerGraph) -> str:
    if role:
        return f"the bias of a layer sharded by {role} is added once, after the reduction"
    layers = [layer for layer in graph.layers if layer.weight == info.name]
    if layers:
        feeds = any(info.name in layer.sources for layer in graph.layers)
        mixed = MIXTURE in layers[0].sources
        if feeds:
            return "it feeds a layer that has other inputs too, which are not sharded"
        return "it feeds no linear layer" + (" and is no head over a vocabulary" if mixed else "")
    if info.owner_kind is OwnerKind.EMBEDDING:
        return "no head predicts its rows, so they are no vocabulary"
    if info.owner_kind is not OwnerKind.OTHER and len(info.shape) == 1:
        return "the bias of a layer that is not sharded"
    if len(info.shape) <= 1:
        return "a vector, such as the scale of a norm"
    return "not the weight of a linear layer or an embedding: name a dim (shard ... dim N over tp)"
