"""Faults of the runtime: of a rank, of what rank threads exchange, and of how a session gathers results."""

from __future__ import annotations

from typing import Any

import torch
from stretto.runtime.program import mesh, rank_ops
from stretto.runtime.rank import executor, in_place_sums, shards, translate
from stretto.runtime.session import State
from stretto.runtime.threads import communicator, rendezvous, session

from .finding import Finder
from .source_faults import Plant, SourceFault, Wrong, around, entry, giving, value
from .users_models import Case

GPT, PIPELINE, NORMS = Case("gpt", "dp_tp"), Case("gpt", "pp"), Case("norms", "dp")
SEQUENCE, TWO, ZERO_BUBBLE = Case("gpt", "sequence"), Case("gpt", "two"), Case("gpt", "zb")


def fault(where: str, plant: Plant, case: Case = GPT, equivalent: str = "") -> SourceFault:
    return SourceFault(f"runtime/{where}", plant, Finder.COMPILE_CHECK, case, equivalent=equivalent)


def mean_for_sum(right: Wrong) -> Wrong:
    def wrong(tensors: Any, reduce: str) -> torch.Tensor:
        total: torch.Tensor = right(tensors, reduce)
        return total / len(tensors) if reduce == "sum" and total.is_floating_point() else total

    return wrong


def all_but_the_last(right: Wrong) -> Wrong:
    return lambda tensors, reduce: right(tensors[:-1] if len(tensors) > 2 else tensors, reduce)


def next_position(right: Wrong) -> Wrong:
    return lambda call, tensors, position: right(call, tensors, (position + 1) % len(tensors))


def same_other_axes_forgotten(right: Wrong) -> Wrong:
    """Messages go to the first rank of the other stage, whatever the sender's place on other axes."""
    return lambda self, rank, axis, coordinate: right(self, 0, axis, coordinate)


def reversed_axes(right: Wrong) -> Wrong:
    return lambda mesh, rank, axes: right(mesh, rank, axes[::-1])


def arguments_swapped(op: str, one: str, two: str) -> Plant:
    order = [{one: two, two: one}.get(name, name) for name in translate.PARAMETERS[op]]
    return entry(translate.PARAMETERS, op, tuple(order))


def any_add(code: Any, arguments: Any, kept: Any) -> frozenset[int]:
    """Every sum of a sum is made in place, whoever reads the first one again."""
    sums = {slot for c in code if c.op == in_place_sums.ADD for slot in c.writes()}
    return frozenset(i for i, c in enumerate(code) if c.op == in_place_sums.ADD and c.reads() and c.reads()[0] in sums)


def unscaled(values: list[torch.Tensor]) -> list[torch.Tensor]:
    return values[:-1]


def scaled_twice(right: Wrong) -> Wrong:
    def wrong(values: list[torch.Tensor]) -> list[torch.Tensor]:
        tangent = values[-1]
        return [gradient * tangent for gradient in right(values)]

    return wrong


def cached_for_ever(right: Wrong) -> Wrong:
    """A padded copy of a parameter is kept, though the parameter changes."""

    def wrong(self: Any, argument: Any, tensor: Any, rank: int) -> Any:
        kept = self._views[rank].get(argument.name)
        if argument.kind == "parameter" and kept is not None:
            return kept[2]
        local = right(self, argument, tensor, rank)
        if argument.kind == "parameter":
            self._views[rank][argument.name] = (0, (), local)
        return local

    return wrong


def all_tangents_exchanged(right: Wrong) -> Wrong:
    return lambda self, state, tangents, unreduced=None: right(self, state, tangents[::-1], unreduced)


def every_rank_is_primary(right: Wrong) -> Wrong:
    return lambda self, rank, axes, primary=None: True if not primary else right(self, rank, axes, primary)


def primary_forgotten(right: Wrong) -> Wrong:
    return lambda self, rank, axes, primary=None: right(self, rank, axes)


def repeated_padding(right: Wrong) -> Wrong:
    """Padding holds ones, not zeros."""

    def wrong(tensor: torch.Tensor, dim: int, coordinate: int, chunk: int) -> torch.Tensor:
        local: torch.Tensor = right(tensor, dim, coordinate, chunk)
        valid = rank_ops.valid_extent(coordinate, chunk, tensor.shape[dim])
        if valid < chunk:
            local.narrow(dim, valid, chunk - valid).fill_(1)
        return local

    return wrong


def coordinate_alone(right: Wrong) -> Wrong:
    return lambda self, axes, chunk, microbatch=0: right(self, axes, 1, microbatch)


def mask_of_the_front(right: Wrong) -> Wrong:
    def wrong(self: Any, tensor: torch.Tensor, axes: Any, dim: int, *rest: Any) -> torch.Tensor:
        masked: torch.Tensor = right(self, tensor.flip(dim), axes, dim, *rest)
        return masked.flip(dim)

    return wrong


def filled_with_zero(right: Wrong) -> Wrong:
    def wrong(self: Any, tensor: Any, axes: Any, dim: int, chunk: int, extent: int, fill: Any, *rest: Any) -> Any:
        return right(self, tensor, axes, dim, chunk, extent, 0, *rest)

    return wrong


def numbers_not_counted(right: Wrong) -> Wrong:
    """Of two messages under way between two ranks the receiver takes either first."""

    def wrong(self: Any, axis: str, peer: int, *rest: Any) -> Any:
        source = self._group.mesh.peer(self.rank, axis, peer)
        number = self.received_counts.get(source, 0)
        if number in (1, 2):
            self.received_counts[source] = 3 - number
            handle = right(self, axis, peer, *rest)
            self.received_counts[source] = number + 1
            return handle
        return right(self, axis, peer, *rest)

    return wrong


def buffers_of_the_caller(right: Wrong) -> Wrong:
    """New values of buffers are given by the order of the inputs' names."""

    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs, state = right(self, *args, **kwargs)
        names = list(state.buffers)
        shapes = {name: state.buffers[name].shape for name in names}
        mean, var = ("norm.running_mean", "norm.running_var")
        swapped = {mean: var, var: mean}
        if shapes.get(mean) == shapes.get(var):
            buffers = {name: state.buffers[swapped.get(name, name)] for name in names}
            return outputs, State(buffers, state.saved)
        return outputs, state

    return wrong


RANK_FAULTS = {
    "a mask takes its chunk for its extent": fault(
        "rank/translate: parameters of rank.mask", arguments_swapped("rank.mask", "chunk", "extent")
    ),
    "sums are made in place though their first operand is read again": fault(
        "rank/in_place_sums: in_place_adds", value(translate, "in_place_adds", any_add), Case("draws", "both")
    ),
    "a pipeline's gradients ignore the loss's tangent": fault(
        "rank/executor: scaled_gradients", value(executor, "scaled_gradients", unscaled), PIPELINE
    ),
    "a pipeline's gradients are scaled twice": fault(
        "rank/executor: scaled_gradients", around(executor, "scaled_gradients", scaled_twice), PIPELINE
    ),
    "the offset of a shard is its coordinate": fault(
        "program/rank_ops: offset",
        around(rank_ops.RankOps, "offset", coordinate_alone),
    ),
    "a mask covers the first elements": fault(
        "program/rank_ops: mask", around(rank_ops.RankOps, "mask", mask_of_the_front)
    ),
    "a mask fills with zero, whatever it is told": fault(
        "program/rank_ops: mask", around(rank_ops.RankOps, "mask", filled_with_zero)
    ),
    "padding of a shard holds ones": fault(
        "program/rank_ops: take_chunk",
        around(shards, "take_chunk", repeated_padding),
        equivalent="padding has no meaning, and every use of it is masked",
    ),
}
THREAD_FAULTS = {
    "an all-reduce gives the mean": fault("threads/rendezvous: _reduced", around(rendezvous, "_reduced", mean_for_sum)),
    "a reduction of more than two ranks leaves out the last": fault(
        "threads/rendezvous: _reduced", around(rendezvous, "_reduced", all_but_the_last), Case("gpt", "dp4")
    ),
    "a maximum is computed as a minimum": fault(
        "threads/rendezvous: _COMBINE", entry(rendezvous._COMBINE, "max", torch.minimum)
    ),
    "an all-gather joins parts in reverse": fault(
        "threads/rendezvous: tensors_in_order",
        giving(rendezvous.Rendezvous, "tensors_in_order", lambda tensors: tensors[::-1]),
        SEQUENCE,
    ),
    "a reduce-scatter gives each rank its neighbour's part": fault(
        "threads/rendezvous: own_result", around(communicator, "own_result", next_position), SEQUENCE
    ),
    "a message goes to the first data rank of a stage": fault(
        "program/mesh: peer", around(mesh.RankMesh, "peer", same_other_axes_forgotten), PIPELINE
    ),
    "two messages are taken in the other order": fault(
        "threads/communicator: receive_start",
        around(communicator.InProcessCommunicator, "receive_start", numbers_not_counted),
        ZERO_BUBBLE,
    ),
    "the position over two axes counts the last one as outermost": fault(
        "program/mesh: _coordinate",
        around(mesh, "_coordinate", reversed_axes),
        TWO,
        equivalent="ranks hold each other's shards, and know it",
    ),
    "a padded copy of a parameter outlives the optimizer's step": fault(
        "threads/session: _local", around(session.RankThreads, "_local", cached_for_ever)
    ),
    "every replica is taken for the primary one": fault(
        "program/mesh: is_primary",
        around(mesh.RankMesh, "is_primary", every_rank_is_primary),  # gradients under no_sync are added twice
    ),
    "the stage that has a result is forgotten": fault(
        "program/mesh: is_primary", around(mesh.RankMesh, "is_primary", primary_forgotten), PIPELINE
    ),
    "two buffers of one shape are written back in each other's place": fault(
        "threads/session: forward", around(session.RankThreads, "forward", buffers_of_the_caller), NORMS
    ),
}
RUNTIME_FAULTS = RANK_FAULTS | THREAD_FAULTS
