"""The joint graph of a forward, traced for a few of many equal layers and copied for the others."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..captured import Mode
from ..metadata import annotate
from ..repeats.grown import grow
from ..repeats.shortened import shortened
from .joint import TracedForward, TracedGraphs, trace_joint
from .traced import MODEL_ATTRIBUTE


def joint_of_distinct_layers(module: nn.Module, traced: TracedForward, mode: Mode) -> TracedGraphs:
    """The graphs of a forward with static sizes, as `trace_joint` gives them, with the origins of all nodes.

    Where the forward has no run of equal layers, or their joint graphs differ, all is traced.
    """
    found = shortened(traced.graph, MODEL_ATTRIBUTE)
    if found is not None:
        short, run = found
        graphs = trace_joint(module, replace(traced, graph=short), mode)
        annotate(graphs.joint.graph, MODEL_ATTRIBUTE)
        if grow(graphs.joint, run, MODEL_ATTRIBUTE):
            return replace(graphs, forward=traced.graph)
    graphs = trace_joint(module, traced, mode)
    annotate(graphs.joint.graph, MODEL_ATTRIBUTE)
    return graphs
