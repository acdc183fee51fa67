"""Apply what a statement says to every function of a module, layers joined with their backward."""

from __future__ import annotations

from collections.abc import Container, Mapping

from ...ir.locations import Origin, from_location
from ...ir.module import Module, callee, operations
from ..graph import Graph
from ..layers.joint_layers import joined
from .again import Again
from .gather_again import gather_again
from .regions import Regions


def rewrite(module: Module, regions: Regions, chosen: Mapping[str, Container[int]] | None = None) -> tuple[int, float]:
    """How many operations run again, and their floating-point operations on a rank; of layers at all calls.

    `chosen` names values by function and number; without it all that the statement is about are dropped.
    """
    count, flops = 0, 0.0
    with joined(module):
        layers = places_of_calls(module)
        for name, function in module.functions().items():
            places = layers.get(name, [Origin()])
            again = Again(Graph.of(function), regions, places[0], None if chosen is None else chosen.get(name, ()))
            again.run()
            count += again.operations * len(places)
            flops += again.flops * len(places)
    gather_again(module)
    return count, flops


def places_of_calls(module: Module) -> dict[str, list[Origin]]:
    """By function: the places of its calls in main."""
    layers: dict[str, list[Origin]] = {}
    for op in operations(module.functions()["main"]):
        name = callee(op)
        if name is not None:
            layers.setdefault(name, []).append(from_location(op.location))
    return layers
