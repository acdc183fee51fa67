"""`stretto simulate`: print a simulated step, as text and as JSON."""

from __future__ import annotations

from ...backends.simulator.events import PIPELINE
from ...backends.simulator.simulation import Simulation, StageTime
from ..text.console import heading, say, size_text, table


def show_simulation(simulation: Simulation) -> None:
    """Print where the time of a step goes on the stage that ends last, and what memory its ranks need."""
    cluster = simulation.cluster
    say(f"cluster      {cluster.nodes} x {cluster.gpus} {cluster.gpu}, of which {simulation.ranks} are used")
    say(f"step         {time_text(simulation.seconds)}{_tokens_text(simulation)}")
    say(f"utilization  {simulation.utilization:.1%} of the peak by all products that run (HFU)")
    slowest = simulation.slowest
    where = f" of stage {slowest.stage}, which ends last" if len(simulation.stages) > 1 else ""
    heading(f"where the time{where} goes")
    rows = [(name, time_text(seconds), f"{seconds / simulation.seconds:.1%}") for name, seconds in parts(slowest)]
    table(("part", "time", "share"), rows, right=("time", "share"))
    hidden = [(axes, total, slowest.spent.waited.get(axes, 0.0)) for axes, total in slowest.spent.communicated.items()]
    if hidden:
        heading("collectives")
        table(
            ("axes", "time", "not hidden"),
            [(axes, time_text(total), time_text(exposed)) for axes, total, exposed in hidden],
            right=("time", "not hidden"),
        )
    heading("memory")
    _show_memory(simulation)
    say()
    say("The prediction is of fused kernels on a quiet machine. docs/simulator.md says how far it may be off.")


def _show_memory(simulation: Simulation) -> None:
    room = simulation.memory_bytes
    for stage in simulation.stages:
        fits = "fits" if stage.peak_bytes <= room else f"{size_text(int(stage.peak_bytes - room))} too much"
        name = f"stage {stage.stage}" if len(simulation.stages) > 1 else "each rank"
        say(f"  {name}  {size_text(stage.peak_bytes)} of {size_text(int(room))}: {fits}")
        kinds = [*stage.stored.items(), ("activations, what is gathered or sent", stage.working_bytes)]
        for kind, nbytes in kinds:
            say(f"    {size_text(nbytes):>9}  {kind}")


def parts(stage: StageTime) -> list[tuple[str, float]]:
    """The parts of a stage's time in seconds; their sum is the stage's."""
    spent = stage.spent
    found = [(str(kind), seconds) for kind, seconds in spent.computed.items()]
    for axes, seconds in spent.waited.items():
        name = "waiting for other stages" if axes == PIPELINE else f"communication over {axes} that nothing hides"
        found.append((name, seconds))
    found.sort(key=lambda part: -part[1])
    found.append(("waiting for the next kernel to be issued", spent.issuing))
    found.append(("optimizer (AdamW, states in float32)", stage.optimizer))
    return [(name, seconds) for name, seconds in found if seconds > 0]


def simulation_json(simulation: Simulation) -> dict[str, object]:
    """A simulation as JSON: seconds and bytes."""
    return {
        "seconds": simulation.seconds,
        "hfu": simulation.utilization,
        "tokens": simulation.tokens,
        "ranks": simulation.ranks,
        "memory_bytes": simulation.memory_bytes,
        "stages": [
            {
                "stage": stage.stage, "seconds": stage.seconds, "parts": dict(parts(stage)),
                "products_at_peak": stage.spent.at_peak,
                "communicated": dict(stage.spent.communicated), "peak_bytes": stage.peak_bytes,
                "memory": {**stage.stored, "working": stage.working_bytes},
            }
            for stage in simulation.stages
        ],
    }  # fmt: skip


def time_text(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> time_text(0.01234), time_text(3.2), time_text(4e-5)
    ('12.3 ms', '3.20 s', '40 us')
    """
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def _tokens_text(simulation: Simulation) -> str:
    if simulation.tokens is None:
        return ""
    rate = simulation.tokens / simulation.seconds
    return f", {simulation.tokens:,} tokens: {rate:,.0f} a second, {rate / simulation.ranks:,.0f} on a GPU"
