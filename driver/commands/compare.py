"""`stretto compare`: why one step is slower than another, of real runs and of simulations."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from .arguments import add_entry, add_json, add_loading, read_loading
from .outcome import Outcome, require_compiler

if TYPE_CHECKING:
    from ..simulations.timelines import Timeline

HELP = "show why one step is slower than another: real runs, simulations, or one of each"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "A and B are timelines, files of `run --trace`, `stretto.trace` or `simulate --trace`; or program folders, "
        "which are simulated on --cluster. Times are those of one rank in one step, on average. `stretto diff` says "
        "what two programs contain."
    )
    parser.add_argument("a", metavar="A", help="a timeline, or a program folder")
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument("--cluster", metavar="FILE", help="where program folders are simulated")
    parser.add_argument(
        "--unfused",
        action="store_true",
        help="of a folder: each instruction is a kernel of its own, as in eager PyTorch",
    )
    add_entry(parser, "the only one")
    add_loading(parser)
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    from ..simulations.timelines import Comparison, show_comparison

    read_loading(arguments)
    if arguments.cluster is None and (os.path.isdir(arguments.a) or os.path.isdir(arguments.b)):
        arguments.usage_error("a program folder is simulated on a cluster; name its file with --cluster FILE")
    found = Comparison(_timeline(arguments.a, arguments), _timeline(arguments.b, arguments))
    return Outcome(0, lambda: show_comparison(found), found.to_json)


def _timeline(path: str, arguments: argparse.Namespace) -> Timeline:
    """That of a file, or of a folder's simulation."""
    from ..simulations.timelines import Timeline, read_timeline

    if not os.path.isdir(path):
        return read_timeline(path)
    require_compiler()
    from ...backends.simulator.simulation import simulate
    from ...dsl.clusters.cluster import Cluster
    from ...runtime.named_entries.program_set import load_entry

    cluster = Cluster.load(arguments.cluster)
    program = load_entry(path, arguments.entry)
    simulation = simulate(program, cluster, fuses=not arguments.unfused, keeps_tasks=True)
    return Timeline(f"{path}, simulated on {cluster.gpu}", simulation.tasks, 1)
