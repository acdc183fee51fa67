"""`stretto explain DIR`: an explanation as text and tables, readable in 100 columns."""

from __future__ import annotations

from enum import StrEnum
from textwrap import indent

from ...runtime.program.named_sizes import Symbolic, range_text
from ...runtime.program.program import Manifest
from ..text.console import count_text, heading, place_text, say, shape_text, size_text, table
from .explain import Communication, Explanation, Placed
from .remarks import counted, remark_text, warning_text
from .stages import Stage

_NAMES_SHOWN = 2


class Detail(StrEnum):
    """How much is said of the passes' remarks."""

    SUMMARY = "summary"
    ALL = "all"


def show_explanation(explanation: Explanation, detail: Detail = Detail.SUMMARY) -> None:
    """Print all of it, the remarks counted or one by one."""
    program = explanation.program
    manifest = program.manifest
    say(f"program  {program.folder}: {manifest.mode}, {manifest.dtype}, for {manifest.target}")
    say(f"from     {source_text(manifest)}; stretto {manifest.stretto}, torch {manifest.torch}")
    say(f"mesh     {mesh_text(manifest)}")
    if program.symbolic is not None:
        say(f"sizes    {sizes_text(program.symbolic)}")
    _stages(explanation)
    _parameters(explanation)
    _others(explanation)
    _communication(explanation)
    _warnings(explanation)
    _remarks(explanation, detail)


def mesh_text(manifest: Manifest) -> str:
    """The mesh's axes and how many ranks they make."""
    ranks = 1
    for _, size in manifest.mesh:
        ranks *= size
    axes = ", ".join(f"{name}={size}" for name, size in manifest.mesh)
    return f"({axes}): {count_text(ranks, 'rank')}"


def sizes_text(symbolic: Symbolic) -> str:
    """What each named size is in the program as it stands, and what else it may be."""
    names = [f"{each.name}={each.example} of {range_text(each.low, each.high)}" for each in symbolic.names]
    return f"{', '.join(names)}{' where ' if symbolic.guards else ''}{', '.join(symbolic.guards)}"


def source_text(manifest: Manifest) -> str:
    """Where the model came from."""
    source = manifest.source
    if source.get("kind") == "hf":
        return f"hf:{source.get('path')} ({source.get('architecture')})"
    return f"{source.get('path')}:{source.get('name')}" if "path" in source else "a model given in Python"


def totals_text(explanation: Explanation) -> list[str]:
    """One line for each kind of collective over each set of axes."""
    who = "one rank of each stage together" if explanation.stages else "each rank"
    return [
        f"{count} x {kind} over {', '.join(axes)}, {size_text(sent)} sent by {who}"
        for kind, axes, count, sent in explanation.totals
    ]


def parameters_text(explanation: Explanation) -> str:
    """How many parameters are sharded, and what they weigh."""
    return (
        f"{explanation.count(sharded=True)} sharded, {explanation.count(sharded=False)} replicated; "
        f"{size_text(explanation.parameter_bytes)} in all, "
        f"{size_text(explanation.parameter_bytes_per_rank)} on "
        f"{'a rank of the stage that has most' if explanation.stages else 'each rank'}"
    )


def _stages(explanation: Explanation) -> None:
    pipeline = explanation.program.pipeline
    if pipeline is None:
        return
    heading(f"Stages over {pipeline.axis}, microbatches: {pipeline.microbatches}")
    rows = [
        (
            f"{each.number}: {tasks_text(each)}", str(each.parameters), size_text(each.parameter_bytes),
            ", ".join(f"{sends.count} to {sends.to}, {size_text(sends.bytes)}" for sends in each.sends),
        )
        for each in explanation.stages
    ]  # fmt: skip
    table(("stage: tasks", "parameters", "bytes", "sends"), rows, right=("parameters", "bytes"))
    say("  (bytes: of the parameters on a rank; sends: by a rank in a step)")


def tasks_text(stage: Stage) -> str:
    """A stage's tasks, those that run equally often together.

    >>> tasks_text(Stage(0, 1, 8, (("forward_0", 4), ("backward_0", 4), ("forward_2", 2)), ()))
    '4 x forward_0, backward_0; 2 x forward_2'
    """
    by_count: dict[int, list[str]] = {}
    for name, count in stage.tasks:
        by_count.setdefault(count, []).append(name)
    return "; ".join(f"{count} x {', '.join(names)}" for count, names in by_count.items())


def _parameters(explanation: Explanation) -> None:
    heading("Parameters")
    _placed(explanation.parameters, explanation)
    say(f"  {parameters_text(explanation)}")


def _others(explanation: Explanation) -> None:
    if explanation.others:
        heading("Inputs, buffers and constants")
        _placed(explanation.others, explanation)


def _placed(tensors: tuple[Placed, ...], explanation: Explanation) -> None:
    rows: list[tuple[str, ...]] = []
    stage = ("stage",) if explanation.stages else ()
    for each in tensors:
        tied = f" = {', '.join(each.aliases[:_NAMES_SHOWN])}" if each.aliases and len(each.names) == 1 else ""
        times = f"{len(each.names)} x" if len(each.names) > 1 else ""
        rows.append(
            (
                each.name + tied, times, shape_text(each.shape), each.placement, shape_text(each.local_shape),
                size_text(each.bytes_per_rank), *(_stages_text(each.stages) for _ in stage),
            )
        )  # fmt: skip
    table(("name", "", "shape", "placement", "a rank has", "bytes", *stage), rows, right=("", "bytes"))


def _stages_text(stages: tuple[int, ...] | None) -> str:
    return "all" if stages is None else ", ".join(map(str, stages))


def _communication(explanation: Explanation) -> None:
    heading("Communication of one step")
    if not explanation.communication:
        say("  none")
        return
    rows: list[tuple[str, ...]] = []
    stage = ("stage",) if explanation.stages else ()
    phase = ""
    for each in explanation.communication:
        if phase != _phase(each):
            phase = _phase(each)
            rows.append((phase, "", "", "", "", "", *("" for _ in stage)))
        sent = size_text(each.sent_bytes)
        where = (str(each.stage) for _ in stage)
        rows.append((f"  {_cause(each)}", each.kind, ",".join(each.axes), *where, str(each.count), sent, _source(each)))
    table(("cause", "kind", "over", *stage, "count", "sent", "source"), rows, right=("count", "sent"))
    for line in totals_text(explanation):
        say(f"  {line}")
    say("  (sent: by each rank in a step, done as a ring: 2(n-1)/n of an all-reduced tensor, (n-1)/n of another)")


def _phase(each: Communication) -> str:
    if each.gradients:
        return "gradients of"
    return "backward of" if each.backward else "forward of"


def _cause(each: Communication) -> str:
    return each.module or "(the model itself)"


def _source(each: Communication) -> str:
    return count_text(len(each.gradients), "parameter") if each.gradients else place_text(each.file, each.line)


def _warnings(explanation: Explanation) -> None:
    if explanation.warnings:
        heading("Warnings")
    for each in explanation.warnings:
        say(indent(warning_text(each), "  "))


def _remarks(explanation: Explanation, detail: Detail) -> None:
    heading("Ops without a sharding rule")
    for each in explanation.without_rule:
        say(f"  {remark_text(each)}")
    if not explanation.without_rule:
        say("  none")
    if not explanation.other_remarks:
        return
    heading("Remarks")
    if detail is Detail.ALL:
        for each in explanation.other_remarks:
            say(f"  {remark_text(each)}")
        return
    for name, counts in counted(explanation.other_remarks):
        say(f"  {name:<22}{counts}")
    say("  (each of them: stretto explain DIR --remarks)")
