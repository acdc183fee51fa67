"""`stretto simulate --html`: a simulated step as one page of its own: no file, no network beside it."""

from __future__ import annotations

import json
from importlib.resources import files

from ...backends.simulator.simulation import Simulation
from ..text.console import size_text
from .simulation import parts, time_text

_NOTE = "The prediction is of fused kernels on a quiet machine. docs/simulator.md says how far it may be off."


def page(simulation: Simulation, name: str) -> str:
    """The page of a simulation that kept its tasks; `name` says what was simulated."""
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    text = json.dumps(_data(simulation, name), separators=(",", ":"), allow_nan=False)
    return template.replace("{{DATA}}", text.replace("<", "\\u003c"))  # no text of a program ends the script


def _data(simulation: Simulation, name: str) -> dict[str, object]:
    cluster, slowest = simulation.cluster, simulation.slowest
    several = len(simulation.stages) > 1
    lanes = sorted({(task.stage, task.lane) for task in simulation.tasks}, key=lambda each: (each[0], _order(each[1])))
    numbers = {lane: number for number, lane in enumerate(lanes)}
    most = max(simulation.stages, key=lambda stage: stage.peak_bytes)
    spent = slowest.spent
    return {
        "title": name,
        "about": f"{cluster.nodes} x {cluster.gpus} {cluster.gpu}, of which {simulation.ranks} are used",
        "note": _NOTE,
        "figures": [
            [time_text(simulation.seconds), "a step"],
            *([[_rate(simulation), "tokens a second on a GPU"]] if simulation.tokens else []),
            [f"{simulation.utilization:.1%}", "of the peak, by all products that run (HFU)"],
            [size_text(most.peak_bytes), f"of {size_text(int(simulation.memory_bytes))}, the most that a rank needs"],
        ],
        "time_title": "Where the time goes" + (f" on stage {slowest.stage}, which ends last" if several else ""),
        "time": [[part, time_text(each), each / simulation.seconds] for part, each in parts(slowest)],
        "memory": [
            [kind, size_text(nbytes), nbytes / simulation.memory_bytes]
            for kind, nbytes in (*most.stored.items(), ("activations, what is gathered or sent", most.working_bytes))
        ],
        "collectives": [
            [f"over {axes}: {time_text(spent.waited.get(axes, 0.0))} not hidden", time_text(total), None]
            for axes, total in spent.communicated.items()
        ],
        "lanes": [f"stage {stage}, {lane}" if several else lane for stage, lane in lanes],
        "tasks": [
            [numbers[task.stage, task.lane], task.name, task.place, task.start, task.end] for task in simulation.tasks
        ],
        "end": max((task.end for task in simulation.tasks), default=simulation.seconds),
    }


def _rate(simulation: Simulation) -> str:
    return f"{(simulation.tokens or 0) / simulation.seconds / simulation.ranks:,.0f}"


def _order(lane: str) -> tuple[int, str]:
    """Calls and computing come first."""
    return {"calls": 0, "compute": 1}.get(lane, 2), lane
