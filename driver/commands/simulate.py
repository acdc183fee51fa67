"""`stretto simulate`: how long a step of a program would take on a cluster."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import TYPE_CHECKING

from .arguments import (
    add_entry,
    add_json,
    add_loading,
    add_target_options,
    check_target_options,
    is_target,
    read_loading,
)
from .outcome import Outcome, require_compiler

if TYPE_CHECKING:
    from ...backends.simulator.kernels import Products
    from ...backends.simulator.simulation import Simulation
    from ...dsl.clusters.cluster import Cluster
    from ...dsl.plan import Plan
    from ...runtime.program.program import Program
    from ..simulations.room import Remedies

HELP = "predict a program's step time and memory on a cluster"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "Walk the program as its ranks would, with each instruction at its price on the cluster's GPUs and links. "
        "Nothing runs. docs/simulator.md has the formulas, and says how far they are from measurements."
    )
    parser.add_argument("path", metavar="DIR|TARGET", help="a program folder; with --plan a target, which is compiled")
    parser.add_argument("--plan", metavar="FILE", help="the plan to compile the target with")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), help="of a target; default: its own")
    add_target_options(parser)
    add_entry(parser, "the only one")
    parser.add_argument("--cluster", metavar="FILE", required=True, help="a cluster file: nodes, GPUs, links")
    parser.add_argument(
        "--set",
        metavar="ITEM=VALUE[,VALUE]",
        dest="changes",
        action="append",
        default=[],
        help="other values of an item of the cluster or a number of the plan: a row for each choice (repeatable)",
    )
    parser.add_argument("--plot", metavar="FILE", help="with --set: also draw the rows, as an SVG picture")
    parser.add_argument(
        "--unfused", action="store_true", help="each instruction is a kernel of its own, as in eager PyTorch"
    )
    parser.add_argument(
        "--fp8",
        action="store_true",
        help="price 16-bit matrix products in fp8, quantization included; programs run none",
    )
    parser.add_argument("--trace", metavar="FILE", help="also write what runs when, for Perfetto or chrome://tracing")
    parser.add_argument("--html", metavar="FILE", help="also write a page of its own: lanes, times, memory")
    add_loading(parser)
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    require_compiler()
    from ...backends.simulator.kernels import Products
    from ...backends.simulator.simulation import simulate
    from ...dsl.clusters.cluster import Cluster
    from ...runtime.lanes.timeline import trace_events
    from ..simulations.room import fits, show_remedies
    from ..simulations.simulation import show_simulation, simulation_json
    from ..text.console import say
    from ..text.text_files import write_text

    read_loading(arguments)
    cluster = Cluster.load(arguments.cluster)
    if arguments.plot and not arguments.changes:
        arguments.usage_error("--plot draws the rows of --set")
    if arguments.changes:
        return _sweep(arguments, cluster)
    program = _program(arguments)
    products = Products.FP8 if arguments.fp8 else Products.AS_STATED
    priced = partial(simulate, program, fuses=not arguments.unfused, products=products)
    simulation = priced(cluster, keeps_tasks=bool(arguments.trace or arguments.html))
    if arguments.trace:
        write_text(arguments.trace, json.dumps(trace_events(simulation.tasks)))
    if arguments.html:
        from ..simulations.page import page

        write_text(arguments.html, page(simulation, arguments.path))
    helping = _remedies(arguments, simulation, products)

    def show() -> None:
        show_simulation(simulation)
        if helping is not None:
            show_remedies(helping, simulation)
        elif not fits(simulation):
            say("With a target and its --plan in place of a folder, statements that would help are tried.")

    more = {} if helping is None else {"remedies": [each.to_json() for each in helping.shown]}
    return Outcome(0, show, lambda: {**simulation_json(simulation), **more})


def _sweep(arguments: argparse.Namespace, cluster: Cluster) -> Outcome:
    """A row for each choice of values."""
    from ...backends.simulator.kernels import Products
    from ...backends.simulator.simulation import simulate
    from ...dsl.plan import Plan
    from ..simulations.simulation import simulation_json
    from ..simulations.sweep import changes_of, plot, show_sweep, sweep
    from ..text.text_files import write_text

    if arguments.trace or arguments.html:
        arguments.usage_error("--trace and --html are of one simulation; leave out --set")
    changes = changes_of(arguments.changes)
    if isinstance(changes, str):
        arguments.usage_error(f"--set takes ITEM=VALUE, such as network=25GB/s,50GB/s, not {changes}")
    assert not isinstance(changes, str)
    products = Products.FP8 if arguments.fp8 else Products.AS_STATED
    points = list(
        sweep(
            changes,
            cluster,
            Plan.load(arguments.plan) if arguments.plan else None,
            lambda plan: _program(arguments) if plan is None else _compiled(arguments, plan),
            lambda program, on: simulate(program, on, fuses=not arguments.unfused, products=products),
        )
    )
    if arguments.plot:
        write_text(arguments.plot, plot(changes, points))
    by_values = {", ".join(point.values): point.simulation for point in points}
    return Outcome(
        0,
        lambda: show_sweep(changes, points),
        lambda: {values: simulation_json(each) for values, each in by_values.items()},
    )


def _remedies(arguments: argparse.Namespace, simulation: Simulation, products: Products) -> Remedies | None:
    """Statements that would make a target fit; None where it fits, or where there is only a program."""
    from ...backends.simulator.simulation import simulate
    from ...dsl.plan import Plan
    from ..simulations.room import fits, remedies
    from ..text.console import note

    if arguments.plan is None or fits(simulation):
        return None

    note("it does not fit: statements that would help are compiled and simulated ..")
    return remedies(
        Plan.load(arguments.plan),
        simulation,
        lambda plan: simulate(
            _compiled(arguments, plan), simulation.cluster, fuses=not arguments.unfused, products=products
        ),
    )


def _program(arguments: argparse.Namespace) -> Program:
    """The program of a folder, or of a target and a plan: it is compiled and not kept."""
    from ...runtime.named_entries.program_set import load_entry

    if arguments.plan is None:
        if is_target(arguments.path):
            arguments.usage_error("a target is compiled under a plan; name its file with --plan FILE")
        return load_entry(arguments.path, arguments.entry)
    from ...dsl.plan import Plan

    return _compiled(arguments, Plan.load(arguments.plan))


def _compiled(arguments: argparse.Namespace, plan: Plan) -> Program:
    """The program of a target under a plan; it is not kept."""
    if arguments.entry:
        arguments.usage_error("--entry is of a program folder; an entry of a target is FILE.py:FUNCTION.ENTRY")
    check_target_options(arguments, arguments.path)
    from ..compile.compile_program import compile_program
    from ..compile.compile_target import CompileJob, request_of

    job = CompileJob(
        arguments.path, arguments.plan, "", arguments.mode, arguments.dtype, arguments.batch, arguments.seq
    )
    return compile_program(request_of(job, plan)).program
