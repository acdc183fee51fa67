"""`stretto explain DIR`: print an explanation as text and tables, in 100 columns."""

from __future__ import annotations

from enum import StrEnum
from textwrap import indent

from ...runtime.program.named_sizes import Symbolic, range_text
from ...runtime.program.program import Manifest
from ..text.console import count_text, heading, place_text, say, shape_text, size_text, table
from .changed_function import changes
from .explain import Communication, Explanation, PlacedTensors
from .remarks import RemarkJson, counts_by_pass, remark_text, remarks_of, warning_text
from .show_lanes import show_lanes
from .stages import Stage

_NAMES_SHOWN = 2


class Detail(StrEnum):
    """How remarks are printed: counted, or one by one."""

    SUMMARY = "summary"
    ALL = "all"


def show_explanation(explanation: Explanation, detail: Detail = Detail.SUMMARY) -> None:
    """Print an explanation."""
    program = explanation.program
    manifest = program.manifest
    say(f"program  {program.folder}: {manifest.mode}, {manifest.dtype}, for {manifest.target}{_checked_on(manifest)}")
    say(f"from     {source_text(manifest)}; stretto {manifest.stretto}, torch {manifest.torch}")
    say(f"mesh     {mesh_text(manifest)}")
    for statement in explanation.implied:
        say(f"implied  {statement}")
    for line in changes(program):
        say(f"changed  the function, as the plan says: {line}")
    if program.symbolic is not None:
        say(f"sizes    {sizes_text(program.symbolic)}")
    if explanation.lanes:
        counts = ", ".join(f"{lane} {count}" for lane, count in explanation.lanes.items())
        say(f"lanes    {counts} (instructions that name one); {explanation.order}")
    if explanation.kinds:
        say(f"kinds    {'; '.join(map(str, explanation.kinds))}")
    _stages(explanation)
    _parameters(explanation)
    _others(explanation)
    _communication(explanation)
    show_lanes(explanation.overlap, remarks_of(explanation.program))
    _avoidable(explanation)
    _merged(explanation)
    _recomputed(explanation)
    _warnings(explanation)
    _remarks(explanation, detail)


def _checked_on(manifest: Manifest) -> str:
    """The targets on which eager PyTorch agreed, as far as the manifest says."""
    targets = manifest.checked.get("targets")
    if manifest.checked.get("result") != "passed" or not isinstance(targets, list | tuple):
        return ""
    return f"; checked on {', '.join(map(str, targets))}"


def mesh_text(manifest: Manifest) -> str:
    """The mesh's axes and its number of ranks."""
    ranks = 1
    for _, size in manifest.mesh:
        ranks *= size
    axes = ", ".join(f"{name}={size}" for name, size in manifest.mesh)
    return f"({axes}): {count_text(ranks, 'rank')}"


def sizes_text(symbolic: Symbolic) -> str:
    """The value of each named size in the program, and the range that is valid."""
    names = [f"{size.name}={size.example} of {range_text(size.low, size.high)}" for size in symbolic.names]
    return f"{', '.join(names)}{' where ' if symbolic.guards else ''}{', '.join(symbolic.guards)}"


def source_text(manifest: Manifest) -> str:
    """The target that the model was loaded from."""
    source = manifest.source
    if source.get("kind") == "hf":
        return f"hf:{source.get('path')} ({source.get('architecture')})"
    return f"{source.get('path')}:{source.get('name')}" if "path" in source else "a model given in Python"


def totals_text(explanation: Explanation) -> list[str]:
    """One line for each kind of communication over each set of axes."""
    who = "one rank of each stage together" if explanation.stages else "each rank"
    return [
        f"{count} x {kind} over {', '.join(axes)}, {size_text(sent)} sent by {who}"
        for kind, axes, count, sent in explanation.totals
    ]


def parameters_text(explanation: Explanation) -> str:
    """The number of sharded and replicated parameters, and their bytes."""
    return (
        f"{explanation.count(sharded=True)} sharded, {explanation.count(sharded=False)} replicated; "
        f"{size_text(explanation.parameter_bytes)} in all, "
        f"{size_text(explanation.parameter_bytes_per_rank)} on "
        f"{'a rank of the largest stage' if explanation.stages else 'each rank'}"
    )


def _stages(explanation: Explanation) -> None:
    pipeline = explanation.program.pipeline
    if pipeline is None:
        return
    heading(f"Stages over {pipeline.axis}, microbatches: {pipeline.microbatches}")
    rows = [
        (
            f"{entry.number}: {tasks_text(entry)}", str(entry.parameters), size_text(entry.parameter_bytes),
            ", ".join(f"{sends.count} to {sends.to}, {size_text(sends.bytes)}" for sends in entry.sends),
        )
        for entry in explanation.stages
    ]  # fmt: skip
    table(("stage: tasks", "parameters", "bytes", "sends"), rows, right=("parameters", "bytes"))
    say("  (bytes: parameters on one rank; sends: by one rank in one step)")


def tasks_text(stage: Stage) -> str:
    """A stage's tasks, grouped by how often they run.

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


def _placed(tensors: tuple[PlacedTensors, ...], explanation: Explanation) -> None:
    rows: list[tuple[str, ...]] = []
    stage = ("stage",) if explanation.stages else ()
    stored = any(entry.stored_over for entry in tensors)
    for entry in tensors:
        placements = (entry.placement, entry.computed if entry.stored_over else entry.placement)
        tied = f" = {', '.join(entry.aliases[:_NAMES_SHOWN])}" if entry.aliases and len(entry.names) == 1 else ""
        times = f"{len(entry.names)} x" if len(entry.names) > 1 else ""
        rows.append(
            (
                entry.name + tied, times, shape_text(entry.shape), *placements[: 1 + stored],
                shape_text(entry.local_shape), size_text(entry.bytes_per_rank),
                *(_stages_text(entry.stages) for _ in stage),
            )
        )  # fmt: skip
    columns = ("stored", "computed") if stored else ("placement",)
    table(("name", "", "shape", *columns, "local shape", "bytes", *stage), rows, right=("", "bytes"))


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
    for entry in explanation.communication:
        if phase != _phase(entry):
            phase = _phase(entry)
            rows.append((phase, "", "", "", "", "", *("" for _ in stage)))
        sent = size_text(entry.sent_bytes)
        where = (str(entry.stage) for _ in stage)
        rows.append(
            (f"  {_cause(entry)}", entry.kind, ",".join(entry.axes), *where, str(entry.count), sent, _source(entry))
        )
    table(("cause", "kind", "over", *stage, "count", "sent", "source"), rows, right=("count", "sent"))
    for line in totals_text(explanation):
        say(f"  {line}")
    say("  (sent: by each rank in a step, with ring algorithms: 2(n-1)/n of an all_reduce, (n-1)/n of others;")
    say("  redistributions are those of the fewest bytes, where the links of all axes count alike)")
    if any(kind == "all_to_all_rows" for kind, *_ in explanation.totals):
        say("  (all_to_all_rows: if every rank has as many rows to send to each as to every other)")


def _phase(entry: Communication) -> str:
    if entry.gradients:
        return "gradients of"
    return "backward of" if entry.backward else "forward of"


def _cause(entry: Communication) -> str:
    return entry.module or "(the model itself)"


def _source(entry: Communication) -> str:
    return count_text(len(entry.gradients), "parameter") if entry.gradients else place_text(entry.file, entry.line)


def _avoidable(explanation: Explanation) -> None:
    if explanation.avoidable:
        heading("Redistributions that a statement avoids")
    for remark in explanation.avoidable:
        place = place_text(str(remark.get("file") or ""), _line(remark))
        say(f"  {remark.get('module')} ({place}): {remark.get('message')}")


def _merged(explanation: Explanation) -> None:
    if explanation.merged:
        heading("Operations that gather rows, because they take all of them at once")
    for remark in explanation.merged:
        place = place_text(str(remark.get("file") or ""), _line(remark))
        say(f"  {remark.get('module') or '(the model itself)'} ({place}): {remark.get('message')}")


def _line(remark: RemarkJson) -> int:
    line = remark.get("line")
    return line if isinstance(line, int) else 0


def _recomputed(explanation: Explanation) -> None:
    if explanation.recomputed:
        heading("Computed again in the backward")
    for statement, message in explanation.recomputed:
        say(f"  {statement}\n    {message}")


def _warnings(explanation: Explanation) -> None:
    if explanation.warnings:
        heading("Warnings")
    for warning in explanation.warnings:
        say(indent(warning_text(warning), "  "))


def _remarks(explanation: Explanation, detail: Detail) -> None:
    heading("Ops without a sharding rule")
    for remark in explanation.without_rule:
        say(f"  {remark_text(remark)}")
    if not explanation.without_rule:
        say("  none")
    if not explanation.other_remarks:
        return
    heading("Remarks")
    if detail is Detail.ALL:
        for remark in explanation.other_remarks:
            say(f"  {remark_text(remark)}")
        return
    for name, counts in counts_by_pass(explanation.other_remarks):
        say(f"  {name:<22}{counts}")
    say("  (to list them: stretto explain DIR --remarks)")
