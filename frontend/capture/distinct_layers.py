"""The joint graph of a forward, traced for a few of many equal layers and copied for the others."""

from __future__ import annotations

from dataclasses import replace

from torch import fx, nn

from ..captured import Mode
from ..graph.grouped_experts import with_grouped_experts
from ..metadata import annotate
from ..repeats.grown import grow
from ..repeats.shortened import LEAST, most_layers, shortened
from .joint import TracedForward, TracedGraphs, trace_joint
from .traced import MODEL_ATTRIBUTE


def joint_of_distinct_layers(module: nn.Module, traced: TracedForward, mode: Mode) -> TracedGraphs:
    """The graphs of a forward with static sizes, as `trace_joint` gives them, with the origins of all nodes.

    Where the forward has no run of equal layers, or their joint graphs differ, all is traced. Loops over experts are
    rewritten in the joint graph alone: the forward, which is the reference of checks, stays as the model computes it.
    """
    grouped = with_grouped_experts(traced.graph)
    graphs = _joint(module, traced if grouped is None else replace(traced, graph=grouped), mode)
    return replace(graphs, forward=traced.graph)


def _joint(module: nn.Module, traced: TracedForward, mode: Mode) -> TracedGraphs:
    found = shortened(traced.graph, MODEL_ATTRIBUTE)
    why = f"no {LEAST} of them in a row compute the same from values of the one before"
    if found is not None:
        short, run = found
        graphs = trace_joint(module, replace(traced, graph=short), mode)
        annotate(graphs.joint.graph, MODEL_ATTRIBUTE)
        if grow(graphs.joint, run, MODEL_ATTRIBUTE):
            return replace(graphs, forward=traced.graph)
        why = "they are equal, but their gradients are not"
    graphs = trace_joint(module, traced, mode)
    annotate(graphs.joint.graph, MODEL_ATTRIBUTE)
    return replace(graphs, traced_whole=traced_whole(traced.graph, why))


def traced_whole(forward: fx.GraphModule, why: str) -> str:
    """What a remark says of a forward whose layers are traced one by one; empty for one of few layers."""
    most = most_layers(forward, MODEL_ATTRIBUTE)
    return "" if most is None else f'forward and backward of each of the {most[1]} layers "{most[0]}" are traced: {why}'
