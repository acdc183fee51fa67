"""Looped schedules, with several chunks per rank: interleaved 1F1B and breadth-first."""

from __future__ import annotations

from collections.abc import Iterable

from ..schedule import Kind, Schedule, Task, loop_placement, ordered


def interleaved(ranks: int, microbatches: int, chunks: int) -> Schedule:
    """1F1B over the chunks of each rank, `ranks` microbatches a round. Source: arXiv 2104.04473, section 2.2.

    Idle time (p - 1)(f + b + w) / v if p divides m; peak p + (p - 1) / v activations. If p does not divide m, the order
    may deadlock, which `prove` finds.
    """
    orders = []
    for rank in range(ranks):
        forwards = _rounds(Kind.F, rank, ranks, microbatches, range(chunks))
        backwards = _rounds(Kind.BW, rank, ranks, microbatches, reversed(range(chunks)))
        warmup = min(2 * (ranks - 1 - rank) + (chunks - 1) * ranks, len(forwards))
        order = forwards[:warmup]
        for index, backward in enumerate(backwards):
            order.extend(forwards[warmup + index : warmup + index + 1])
            order.append(backward)
        orders.append(order)
    return Schedule("interleaved", ranks, microbatches, loop_placement(ranks, chunks), ordered(orders))


def _rounds(kind: Kind, rank: int, ranks: int, microbatches: int, chunks: Iterable[int]) -> list[Task]:
    """The tasks of one kind: `ranks` microbatches on each chunk, then the next `ranks` microbatches."""
    chunk_order = list(chunks)
    return [
        Task(kind, rank + chunk * ranks, microbatch)
        for first in range(0, microbatches, ranks)
        for chunk in chunk_order
        for microbatch in range(first, min(first + ranks, microbatches))
    ]


def breadth_first(ranks: int, microbatches: int, chunks: int) -> Schedule:
    """All microbatches on a chunk before the next chunk. Source: arXiv 2211.05953, section 4.1.

    Idle time (p - 1)(f + b + w) / v if m >= p; peak m activations. A chunk's weights are gathered, and its
    gradients reduced, once a step.
    """
    orders = []
    for rank in range(ranks):
        stages = [rank + chunk * ranks for chunk in range(chunks)]
        forwards = [Task(Kind.F, stage, microbatch) for stage in stages for microbatch in range(microbatches)]
        backwards = [
            Task(Kind.BW, stage, microbatch) for stage in reversed(stages) for microbatch in range(microbatches)
        ]
        orders.append(forwards + backwards)
    return Schedule("breadth-first", ranks, microbatches, loop_placement(ranks, chunks), ordered(orders))
