"""What a model is to a plan: what its parameters are called, which would be whole on every rank and why, a plan."""

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
    """What the command line asks for; the sizes are those of the mesh that the plan is proposed for."""

    target: str
    mode: str = "train"
    dtype: str | None = None
    batch: int | None = None
    seq: int | None = None
    data: int = 2
    tensor: int = 2


@dataclass(frozen=True)
class Finding:
    """Parameters of repeated layers that are alike: what they are called, and what the plan does with them."""

    name: str
    """With `*` for the number of a layer."""
    names: tuple[str, ...]
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    kind: str
    """Of the module that owns it: linear, linear_transposed, embedding or other."""
    role: str
    """What the plan says of its layer: columns, rows or vocab; empty where it says nothing."""
    why: str
    """Why it is whole on every rank; empty where it is not."""

    def to_json(self) -> dict[str, Json]:
        return {
            "name": self.name, "count": len(self.names), "names": list(self.names), "aliases": list(self.aliases),
            "shape": list(self.shape), "kind": self.kind, "role": self.role, "why_whole": self.why,
        }  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """All that `stretto doctor` says."""

    job: DoctorJob
    model: str
    """The name of its class."""
    inputs: Mapping[str, tuple[tuple[int, ...], str]]
    """Shape and dtype of each tensor that the example call passes."""
    findings: tuple[Finding, ...]
    plan: StartingPlan
    program: Program
    """The model compiled under the plan, without weights."""
    note: str = ""
    """Where the plan's mesh is not the one that was asked for: why."""

    @property
    def parameters(self) -> int:
        """Elements of all parameters."""
        return sum(prod(each.shape) * len(each.names) for each in self.findings)

    @property
    def cut(self) -> int:
        """Elements of the parameters that the plan cuts."""
        return sum(prod(each.shape) * len(each.names) for each in self.findings if not each.why)

    @property
    def without_rule(self) -> list[RemarkJson]:
        """Remarks about ops that every rank computes because no sharding rule covers them."""
        return [each for each in remarks_of(self.program) if "no sharding rule" in str(each.get("message"))]

    @property
    def warnings(self) -> list[RemarkJson]:
        """Remarks about what the plan says to no effect."""
        return [each for each in remarks_of(self.program) if is_warning(each)]

    def to_json(self) -> dict[str, Json]:
        """One JSON object."""
        inputs: dict[str, Json] = {n: {"shape": list(s), "dtype": d} for n, (s, d) in self.inputs.items()}
        return {
            "target": self.job.target, "model": self.model, "inputs": inputs, "parameters": self.parameters,
            "cut": self.cut, "findings": [each.to_json() for each in self.findings],
            "without_rule": [dict(each) for each in self.without_rule], "plan": self.plan.text,
        }  # fmt: skip


def diagnose(job: DoctorJob) -> Diagnosis:
    """Capture the model, propose a plan, and compile it under that plan.

    Errors: TargetError and CaptureError, as of `stretto compile`.
    """
    mode = Mode(job.mode)
    with progress(len(_STAGES)) as bar:
        bar.to("target", 0)
        given = {key: value for key, value in (("batch", job.batch), ("seq", job.seq)) if value is not None}
        target = load_target(job.target, Request(mode=mode, dtype=job.dtype, **{"batch": job.data, **given}))
        tensors = {name: each for name, each in target.inputs.items() if isinstance(each, torch.Tensor)}
        infos = parameter_infos(target.model)
        bar.to("capture", 1)
        graph = _layers(target, infos)
        bar.to("layers", 2)
        roles = roles_of(graph)
        data, tensor = (job.data, job.tensor) if roles else (job.data * job.tensor, 1)
        wanted, data = data, _shared_batch(data, list(tensors.values()))
        note = f"dp={data} instead of {wanted}: the example's batch does not divide into {wanted} equal parts"
        title = f"a starting plan for {type(target.model).__name__}, by `stretto doctor`"
        plan = starting_plan(title, roles, infos, data, tensor)
        bar.to("compile", 3)
        program = _compiled(target, Plan.parse(plan.text), mode)
    found = tuple(_findings(infos, plan, graph))
    inputs = {name: (tuple(each.shape), dtype_name(each.dtype)) for name, each in tensors.items()}
    return Diagnosis(job, type(target.model).__name__, inputs, found, plan, program, note if data != wanted else "")


def _layers(target: Target, infos: Sequence[ParameterInfo]) -> LayerGraph:
    """The linear layers of the forward alone: what feeds what does not depend on the backward."""
    captured = capture(target.model, (), target.inputs, mode=Mode.INFER)
    module = to_module(captured, {info.name: str(info.owner_kind) for info in infos})
    PassManager([RaiseIdioms()]).run(module)
    return layer_graph(module)


def _shared_batch(ranks: int, tensors: Sequence[torch.Tensor]) -> int:
    """The most data ranks, at most `ranks`, that can share the example's batch evenly."""
    batch = next((each.shape[0] for each in tensors if each.dim()), 1)
    return max(n for n in range(1, ranks + 1) if batch % n == 0)


def _compiled(target: Target, plan: Plan, mode: Mode) -> Program:
    options = Options(mode=mode, loss_only=mode is Mode.TRAIN, keep_weights=False)
    return compile_program(CompileRequest.of(target.model, (), target.inputs, plan, options)).program


def _findings(infos: Sequence[ParameterInfo], plan: StartingPlan, graph: LayerGraph) -> list[Finding]:
    placed = resolve_parameters(Plan.parse(plan.text), infos)
    groups: dict[tuple[object, ...], list[ParameterInfo]] = {}
    for info, found in zip(infos, placed, strict=True):
        role = _role(info, plan)
        why = "" if found.dims else _why_whole(info, role, graph)
        aliases = tuple(family(name) for name in info.names[1:])
        key = (family(info.name), info.shape, str(info.owner_kind), role, why, aliases)
        groups.setdefault(key, []).append(info)
    return [
        Finding(
            name=family(alike[0].name) if len(alike) > 1 else alike[0].name,
            names=tuple(info.name for info in alike),
            aliases=tuple(dict.fromkeys(alias for info in alike for alias in info.names[1:])),
            shape=alike[0].shape,
            kind=str(alike[0].owner_kind),
            role=str(key[3]),
            why=str(key[4]),
        )
        for key, alike in groups.items()
    ]


def _role(info: ParameterInfo, plan: StartingPlan) -> str:
    """What the plan says of the layer that owns a parameter."""
    owner = info.name.rpartition(".")[0]
    return next((role for name, role in plan.roles.items() if name.rpartition(".")[0] == owner), "")


def _why_whole(info: ParameterInfo, role: str, graph: LayerGraph) -> str:
    if role:
        return f"the bias of a layer cut by {role} is added once, to the sum"
    layers = [layer for layer in graph.layers if layer.weight == info.name]
    if layers:
        feeds = any(info.name in layer.sources for layer in graph.layers)
        mixed = MIXTURE in layers[0].sources
        if feeds:
            return "what it feeds has other inputs too, which are not cut"
        return "it feeds no linear layer" + (", and is no head over a vocabulary" if mixed else "")
    if info.owner_kind is OwnerKind.EMBEDDING:
        return "its rows are no vocabulary that a head predicts"
    if info.owner_kind is not OwnerKind.OTHER and len(info.shape) == 1:
        return "the bias of a layer that is not cut"
    if len(info.shape) <= 1:
        return "a vector, such as the scale of a norm"
    return "not the weight of a linear layer or an embedding: say a dim (shard ... dim N over tp)"
