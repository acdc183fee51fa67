"""`stretto simulate`: how long a step of a program would take on a cluster."""

from __future__ import annotations

import argparse

from .arguments import add_allow_ops, add_json
from .outcome import Outcome, require_compiler

HELP = "predict a program's step time and memory on a cluster"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "Walk the program as its ranks would, with each instruction at its price on the cluster's GPUs and links. "
        "Nothing runs. docs/simulator.md has the formulas, and says how far they are from measurements."
    )
    parser.add_argument("folder", metavar="DIR", help="a program folder")
    parser.add_argument("--cluster", metavar="FILE", required=True, help="a cluster file: nodes, GPUs, links")
    parser.add_argument(
        "--set", metavar="ITEM=VALUE[,VALUE]", dest="changes", help="other values of an item of the cluster, a row each"
    )
    add_allow_ops(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    require_compiler()
    from ...backends.simulator.simulation import simulate
    from ...dsl.clusters.cluster import Cluster
    from ...ops.allowed import allow_ops
    from ...runtime.program.program import Program
    from ..report.simulation import show_simulation, show_sweep, simulation_json

    allow_ops(*arguments.allow_ops)
    cluster = Cluster.load(arguments.cluster)
    program = Program.load(arguments.folder)
    if arguments.changes:
        item, _, values = arguments.changes.partition("=")
        found = [(value, simulate(program, cluster.changed(item, value))) for value in values.split(",")]
        return Outcome(
            0, lambda: show_sweep(item, found), lambda: {value: simulation_json(each) for value, each in found}
        )
    simulation = simulate(program, cluster)
    return Outcome(0, lambda: show_simulation(simulation), lambda: simulation_json(simulation))
