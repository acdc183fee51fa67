"""Regions of `torch.autocast` in a graph: calls that enter and leave it, around the nodes of its body.

The casts of a region are made by torch when the joint graph is traced with the region on. In the graph before autograd
they are not yet there, so that the calls stay in it, and in the reference that is written from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx


def enter(dtype: torch.dtype, enabled: bool) -> torch.autocast:
    """Begin a region on the CPU; what is returned ends it. Weights are cast at every use: a graph keeps no cache."""
    region = torch.autocast("cpu", dtype=dtype, enabled=enabled, cache_enabled=False)
    region.__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return region


def leave(region: torch.autocast) -> None:
    """End a region."""
    region.__exit__(None, None, None)


def is_boundary(node: fx.Node) -> bool:
    """Whether a node begins or ends a region."""
    return node.op == "call_function" and node.target in (enter, leave)


@contextmanager
def switched_off() -> Iterator[None]:
    """Inside, only the regions of a graph are on, as in a backward, which has none; afterwards all is as before.

    So it is too where an error has left a region of the graph without its end.
    """
    with torch.autocast("cpu", dtype=torch.get_autocast_dtype("cpu"), enabled=False):
        yield


def note_callers_region(module: fx.GraphModule) -> None:
    """Write the region that the caller is in around all nodes of a graph; nothing where it is in none."""
    if not torch.is_autocast_enabled("cpu"):
        return
    graph = module.graph
    first = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    with graph.inserting_before(first):
        region = graph.call_function(enter, (torch.get_autocast_dtype("cpu"), True))
    with graph.inserting_before(graph.output_node()):
        graph.call_function(leave, (region,))
    module.recompile()
