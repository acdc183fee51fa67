"""Regions of `torch.autocast` in a graph: calls that enter and leave a region, around the nodes of its body.

Torch inserts the casts of a region when the joint graph is traced inside it. The graph before autograd does not have
the casts, so the calls stay in it, and in the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx


def enter(dtype: torch.dtype, enabled: bool) -> torch.autocast:
    """Enter a region on the CPU; pass the result to `leave`. Weights are cast at every use, without a cache."""
    region = torch.autocast("cpu", dtype=dtype, enabled=enabled, cache_enabled=False)
    region.__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return region


def leave(region: torch.autocast) -> None:
    """Leave a region."""
    region.__exit__(None, None, None)


def is_boundary(node: fx.Node) -> bool:
    """Whether a node enters or leaves a region."""
    return node.op == "call_function" and node.target in (enter, leave)


@contextmanager
def switched_off() -> Iterator[None]:
    """Inside, only the graph's own regions are active; a backward has none.

    Afterwards the state is restored, also if an error has left a region of the graph open.
    """
    with torch.autocast("cpu", dtype=torch.get_autocast_dtype("cpu"), enabled=False):
        yield


def note_callers_region(module: fx.GraphModule) -> None:
    """Wrap all nodes of a graph in the caller's active region, if any."""
    if not torch.is_autocast_enabled("cpu"):
        return
    graph = module.graph
    first = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    with graph.inserting_before(first):
        region = graph.call_function(enter, (torch.get_autocast_dtype("cpu"), True))
    with graph.inserting_before(graph.output_node()):
        graph.call_function(leave, (region,))
    module.recompile()
