"""Faults of lowering to a program, of rings, of fitting its named sizes, and of schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stretto.backends.program import lower_program
from stretto.passes.partition.ring import Ring
from stretto.passes.partition.zigzag_attention import _Pairs
from stretto.schedules import catalogue, written
from stretto.schedules.generators import counting, one_chunk
from stretto.schedules.schedule import Kind

from .finding import Finder
from .source_faults import Plant, SourceFault, Wrong, around, giving
from .users_models import Case

GPT, PIPELINE, NORMS = Case("gpt", "dp_tp"), Case("gpt", "pp"), Case("norms", "dp")
RING, ZIGZAG = Case("gpt", "ring"), Case("gpt", "zigzag")
ZERO_BUBBLE, GPIPE = Case("gpt", "zb"), Case("gpt", "gpipe")
Body = lower_program._Body


def lowering(where: str, plant: Plant, case: Case = GPT, equivalent: str = "") -> SourceFault:
    return SourceFault(
        f"backends/program/lower_program: {where}", plant, Finder.VERIFY_TARGET, case, equivalent=equivalent
    )


def schedule(where: str, plant: Plant, case: Case, equivalent: str = "") -> SourceFault:
    return SourceFault(f"schedules/{where}", plant, Finder.VERIFY_TARGET, case, equivalent=equivalent)


def ring(where: str, plant: Plant, case: Case) -> SourceFault:
    return SourceFault(f"passes/partition/{where}", plant, Finder.VERIFY_TARGET, case)


def other_way_round(right: Wrong) -> Wrong:
    return lambda self, step: right(self, -step)


def other_half(right: Wrong) -> Wrong:
    return lambda self, early, late: right(self, late, early)


def freed_at_the_first_read(right: Wrong) -> Wrong:
    def wrong(code: Any, arguments: Any, results: Any, *rest: Any) -> Any:
        kept = [replace(c, free=()) for c in right(code, arguments, results, *rest)]
        freed: set[int] = set(results)
        for index, instruction in enumerate(kept):
            free = tuple(sorted(set(instruction.reads()) - freed))
            freed.update(free)
            kept[index] = replace(instruction, free=free)
        return kept

    return wrong


def chunk_rounded_down(right: Wrong) -> Wrong:
    return lambda extent, ranks: extent // ranks


def names_of_first_axis(right: Wrong) -> Wrong:
    """A shard over two axes is said to be one over the first."""
    return lambda *args: tuple(replace(shard, axes=shard.axes[:1]) for shard in right(*args))


def operands_swapped(op: str) -> Plant:
    def make(right: Wrong) -> Wrong:
        def wrong(self: Any, call: Any) -> Any:
            args, kwargs = right(self, call)
            return ((args[1], args[0], *args[2:]), kwargs) if call.name == op else (args, kwargs)

        return wrong

    return around(Body, "_arguments", make)


def keyword_dropped(name: str) -> Plant:
    def make(right: Wrong) -> Wrong:
        def wrong(self: Any, call: Any) -> Any:
            args, kwargs = right(self, call)
            return args, {key: given for key, given in kwargs.items() if key != name}

        return wrong

    return around(Body, "_arguments", make)


def equal_constants_merged(right: Wrong) -> Wrong:
    """Constants of a collective are those of the first one that was lowered."""
    kept: dict[str, Any] = {}

    def wrong(self: Any, call: Any) -> Any:
        args, kwargs = right(self, call)
        return args, kept.setdefault(call.name, kwargs) if call.name == "comm.all_reduce_start" else kwargs

    return wrong


def index_of_the_other_input(record: Any) -> Any:
    return replace(record, index={0: 1, 1: 0}[record.index]) if record.kind == "input" else record


def last_turn(right: Wrong) -> Wrong:
    """A call is said to be for the first microbatch."""
    return lambda op: None if right(op) is None else 0


RING_FAULTS = {
    "a ring takes a block for that of the rank after it": ring(
        "ring: block", around(Ring, "block", other_way_round), RING
    ),
    "a ring leaves out its last block": ring("ring: steps", giving(Ring, "steps", lambda steps: steps[:-1]), RING),
    "a zigzag step takes the other half": ring(
        "zigzag_attention: chosen", around(_Pairs, "chosen", other_half), ZIGZAG
    ),
}

LOWERING_FAULTS = {
    "slots are freed at their first read": lowering(
        "with_frees", around(lower_program, "with_frees", freed_at_the_first_read)
    ),
    "a chunk is rounded down": lowering("_shards", around(lower_program, "chunk_size", chunk_rounded_down)),
    "a shard over two axes is said to be over one": lowering(
        "_shards", around(lower_program, "_shards", names_of_first_axis), Case("gpt", "two")
    ),
    "operands of subtractions are swapped": lowering("_arguments", operands_swapped("aten.sub.Tensor")),
    "operands of element-wise products are swapped": lowering(
        "_arguments", operands_swapped("aten.mul.Tensor"), equivalent="products commute"
    ),
    "a factor of a sum is dropped": lowering("_arguments", keyword_dropped("alpha"), NORMS),
    "all all-reduces have the constants of the first": lowering(
        "_arguments", around(Body, "_arguments", equal_constants_merged)
    ),
    "two inputs get each other's index": lowering(
        "_input", giving(lower_program, "_input", index_of_the_other_input), NORMS
    ),
    "calls forget their microbatch": lowering(
        "microbatch_of", around(lower_program, "microbatch_of", last_turn), PIPELINE
    ),
    "a gradient is said to be reduced where it is not": SourceFault(
        "backends/program/lower_program: _output",
        giving(lower_program, "_output", lambda record: replace(record, unreduced_over=())),
        Finder.TRAINING,
        scenario="accumulation",
    ),
}


def last_backward_missing(right: Wrong) -> Wrong:
    def wrong(*args: Any) -> Any:
        made = right(*args)
        return replace(made, order=tuple(tasks[:-1] for tasks in made.order))

    return wrong


def backwards_mirrored(right: Wrong) -> Wrong:
    """Backwards of GPipe begin with the last microbatch."""

    def wrong(ranks: int, microbatches: int) -> Any:
        made = right(ranks, microbatches)
        order = tuple((*tasks[:microbatches], *reversed(tasks[microbatches:])) for tasks in made.order)
        return replace(made, order=order)

    return wrong


def last_stage_starts_backwards(right: Wrong) -> Wrong:
    """The last stage begins with a backward."""

    def wrong(ranks: int, microbatches: int) -> Any:
        made = right(ranks, microbatches)
        *others, (first, second, *rest) = made.order
        return replace(made, order=(*others, (second, first, *rest)))

    return wrong


def stages_on_each_others_ranks(right: Wrong) -> Wrong:
    return lambda ranks, chunks=1: tuple(reversed(right(ranks, chunks)))


def weight_gradient_of_the_first(right: Wrong) -> Wrong:
    """W is that of the first microbatch, whichever is due."""

    def wrong(self: Any, *which: Any) -> None:
        right(self, *which)
        if self.tasks[-1].kind is Kind.W:
            self.tasks[-1] = self.tasks[-1]._replace(microbatch=0)

    return wrong


SCHEDULE_FAULTS = {
    "GPipe leaves out the last backward": schedule(
        "generators/one_chunk: fill_drain", around(catalogue, "fill_drain", last_backward_missing), GPIPE
    ),
    "GPipe's backwards begin with the last microbatch": schedule(
        "generators/one_chunk: fill_drain",
        around(catalogue, "fill_drain", backwards_mirrored),
        GPIPE,
        equivalent="another order of the same tasks, that can run",
    ),
    "the last stage of 1F1B begins with a backward": schedule(
        "generators/one_chunk: one_f_one_b", around(catalogue, "one_f_one_b", last_stage_starts_backwards), PIPELINE
    ),
    "stages are placed on each other's ranks": schedule(
        "schedule: loop_placement", around(one_chunk, "loop_placement", stages_on_each_others_ranks), PIPELINE
    ),
    "ZB-H1 repeats the first weight gradient": schedule(
        "generators/counting: w", around(counting.RankOrder, "w", weight_gradient_of_the_first), ZERO_BUBBLE
    ),
    "a written schedule repeats the first weight gradient": schedule(
        "written: _add", around(written._RankTasks, "_add", weight_gradient_of_the_first), Case("gpt", "written")
    ),
}
