"""Compare the tasks of a pipeline with the schedule that the text of a plan names.

Orders are written anew here from the papers that docs/pipelines.md names. Of a schedule that searches, the stages of
each rank are compared, whether weight gradients are apart, and the most activations that a rank holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ...runtime.program.program import Program
from .plan_text import PARAMETERS, PlanText

Task = tuple[str, int]
"""F, B, W or BW, and the virtual stage."""
_TASK = re.compile(r"(forward|backward|input_gradient|weight_gradient)_([0-9]+)")
_LETTERS = {"forward": "F", "backward": "BW", "input_gradient": "B", "weight_gradient": "W"}
_CHUNKS = {
    **dict.fromkeys(("gpipe", "1f1b", "zb-h1", "zb-h2", "zb-auto"), 1),
    **dict.fromkeys(("interleaved", "breadth-first", "zb-v", "v-half", "v-min", "dualpipe-v"), 2),
}
"""By schedule: the chunks of a rank where the plan does not say."""
_WHOLE = ("gpipe", "1f1b", "interleaved", "breadth-first")
"""Schedules that keep the gradients of inputs and of weights together."""


def schedule_facts(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    """Of a training pipeline: the chunks and the tasks of each rank."""
    if program.pipeline is None or not plan.pipeline or program.manifest.mode != "train":
        return
    items = plan.pipeline
    name = items.get("schedule", ["1f1b"])[0]
    ranks = [_tasks(program, entry) for entry in program.pipeline.entries]
    chunks = int(items["chunks"][0]) if "chunks" in items else _CHUNKS.get(name)
    if chunks is not None:
        found = sorted({len({stage for _, stage in tasks}) for tasks in ranks})
        yield "pipeline chunks", ", ".join(map(str, found)), str(chunks)
    axis = items["over"][0]
    has_shared_work = any(axis in each.axes for each in plan.shardings(PARAMETERS))
    if chunks is not None and len(found) == 1 and found[0] == chunks and not has_shared_work:
        yield from _order_facts(name, chunks, ranks, program.pipeline.microbatches)
        if "memory" in items:
            most = float(items["memory"][0])
            yield "pipeline memory", max(max(map(_activations, ranks)) / chunks, most), most


def _tasks(program: Program, entry: str) -> Sequence[Task]:
    """Those of one rank in their order; of a function in which several overlap, one after the other."""
    called = (str(step.args[0]) for step in program.functions[entry].code if step.op == "call")
    return [(_LETTERS[kind], int(stage)) for name in called for kind, stage in _TASK.findall(name)]


def _order_facts(
    name: str, chunks: int, ranks: Sequence[Sequence[Task]], microbatches: int
) -> Iterator[tuple[str, object, object]]:
    count = len(ranks)
    for rank, tasks in enumerate(ranks):
        row = f"pipeline schedule {name}, rank {rank}"
        stages: Sequence[int] = range(rank, chunks * count, count)
        if _CHUNKS.get(name) == 2 and name not in _WHOLE:
            stages = (rank, 2 * count - 1 - rank)  # a V
        yield row, f"stages {sorted({stage for _, stage in tasks})}", f"stages {sorted(stages)}"
        order = published_order(name, [*stages], rank, count, microbatches)
        if order is not None:
            yield row, _text(tasks), _text(each for each in order if each in {*tasks})
        elif name in _CHUNKS:
            yield row, _weight_gradients("BW" in {kind for kind, _ in tasks}), _weight_gradients(name in _WHOLE)
        most = _most_activations(name, count, chunks)
        if most is not None:
            yield f"{row}: activations", max(_activations(tasks) / chunks, most), most


def _weight_gradients(are_together: bool) -> str:
    return f"gradients of weights {'with' if are_together else 'apart from'} those of inputs"


def published_order(name: str, stages: Sequence[int], rank: int, ranks: int, microbatches: int) -> list[Task] | None:
    """The order of a schedule that is written down in a paper; None for one that searches."""
    if name in ("gpipe", "breadth-first"):  # arXiv 1811.06965; 2211.05953
        forwards = [("F", stage) for stage in stages for _ in range(microbatches)]
        return forwards + [("BW", stage) for stage in reversed(stages) for _ in range(microbatches)]
    if name == "interleaved" and microbatches % ranks == 0:  # arXiv 2104.04473, figure 4
        rounds = range(microbatches // ranks)
        forwards = [("F", stage) for _ in rounds for stage in stages for _ in range(ranks)]
        backwards = [("BW", stage) for _ in rounds for stage in reversed(stages) for _ in range(ranks)]
        return _one_of_each(forwards, backwards, 2 * (ranks - 1 - rank) + (len(stages) - 1) * ranks + 1)
    warmup = {"1f1b": ranks - rank, "zb-h1": ranks - rank, "zb-h2": 2 * (ranks - rank) - 1}.get(name)
    if warmup is None:
        return None
    forwards = [("F", rank)] * microbatches
    if name == "1f1b":  # arXiv 2006.09503
        return _one_of_each(forwards, [("BW", rank)] * microbatches, warmup)
    order = _one_of_each(forwards, [("B", rank)] * microbatches, warmup)  # arXiv 2401.10241, figures 2 and 3
    return _with_weight_gradients(order, rank, {"zb-h1": rank, "zb-h2": 2 * rank}[name])


def _one_of_each(forwards: Sequence[Task], backwards: Sequence[Task], warmup: int) -> list[Task]:
    """`warmup` forwards before the first backward, and one more behind each backward."""
    later = iter(forwards[warmup:])
    order = [*forwards[:warmup]]
    for backward in backwards:
        order.append(backward)
        order.extend([each] if (each := next(later, None)) is not None else [])
    return order


def _with_weight_gradients(order: Sequence[Task], stage: int, late: int) -> list[Task]:
    """A weight gradient behind each B but the first `late`, and the others at the end."""
    result: list[Task] = []
    waiting = 0
    for task in order:
        result.append(task)
        if task[0] == "B":
            waiting += 1
            if waiting > late:
                result.append(("W", stage))
                waiting -= 1
    return result + [("W", stage)] * waiting


def _activations(tasks: Sequence[Task]) -> int:
    """The most activations of a chunk and a microbatch that live at once: from F to the last task that reads them."""
    kinds = {kind: {stage for each, stage in tasks if each == kind} for kind in ("W", "BW")}
    alive = most = 0
    for kind, stage in tasks:
        ends = kind in ("W", "BW") or (kind == "B" and stage not in kinds["W"] | kinds["BW"])
        alive += 1 if kind == "F" else -int(ends)
        most = max(most, alive)
    return most


def _most_activations(name: str, ranks: int, chunks: int) -> float | None:
    """In activations of one microbatch on all stages of a rank; None without a published figure."""
    published: Mapping[str, float] = {
        "interleaved": ranks + (ranks - 1) / chunks, "zb-auto": ranks, "zb-v": ranks,
        "v-half": ranks // 2 + 1, "v-min": -(-ranks // 3) + 1, "dualpipe-v": ranks + 0.5,
    }  # fmt: skip
    return published.get(name)


def _text(tasks: Iterator[Task] | Sequence[Task]) -> str:
    """Of each task its kind and stage.

    >>> _text([("F", 0), ("BW", 0)])
    'F0 BW0'
    """
    return " ".join(f"{kind}{stage}" for kind, stage in tasks)
