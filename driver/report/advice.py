"""Advice about a program: what its plan pays for though few want it, with the bytes that a rank sends."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from ...runtime.program.program import Program
from ..text.console import place_text, size_text
from .explain import Communication, Explanation
from .remarks import remarks_of
from .traffic import SEND

_MOVES = ("all_gather", "all_to_all", "reduce_scatter")
"""Collectives that move activations; an all_reduce of a loss or of a count does not."""
_FEW_BYTES = 1024
"""What a rank may send in a step without a word: statistics and counts."""
_NUMBERED = re.compile(r"(?:^|\.)(\d+)\.")


def advice(explanation: Explanation) -> list[str]:
    """One text for each thing to change."""
    return [*_data_axes(explanation), *_cut_heads(explanation), *_small_stages(explanation)]


def _data_axes(explanation: Explanation) -> Iterator[str]:
    """An axis that shards the batch, and no parameter, moves activations."""
    for axis in _batch_axes(explanation.program):
        if axis in _parameter_axes(explanation):
            continue  # then it gathers parameters
        moves = [each for each in _activations(explanation) if axis in each.axes]
        if _sent(moves) > _FEW_BYTES:
            yield (
                f'axis "{axis}" shards the batch, but moves activations: {_in_words(moves)}; rows that need each '
                "other, or an operation without a sharding rule, are the cause"
            )


def _cut_heads(explanation: Explanation) -> Iterator[str]:
    """What column-sharded projections of a module compute is gathered inside that module."""
    if any(remark.get("pass") == "gather-parameters" for remark in remarks_of(explanation.program)):
        return  # gathers of stored parameters look alike
    batch_axes = _batch_axes(explanation.program)
    sharded: defaultdict[str, set[str]] = defaultdict(set)
    for tensors in explanation.parameters:
        for name in tensors.names:
            module = re.sub(r"(?<=\.)\d+(?=\.)", "*", name).rpartition(".")[0].rpartition(".")[0]
            sharded[module].update(axis for shard in tensors.shards for axis in shard.axes)
    for axis in _parameter_axes(explanation):
        moves = [
            each
            for each in _activations(explanation)
            if axis in each.axes and each.kind == "all_gather" and axis in sharded.get(each.module, ())
        ]
        if axis not in batch_axes and _sent(moves) > _FEW_BYTES:
            yield (
                f'axis "{axis}" gathers what projections have computed in parts: {_in_words(moves)}; a head is cut '
                f'in two where "{axis}" has more ranks than there are heads, of keys and values too'
            )


def _small_stages(explanation: Explanation) -> Iterator[str]:
    """A pipeline has more stages than the model has repeated layers."""
    stages = len(explanation.stages)
    names = [name for tensors in explanation.parameters for name in tensors.names]
    layers = _repeated_layers(names)
    if stages > layers > 0:
        sends = [each for each in explanation.communication if each.kind == SEND]
        yield (
            f"the pipeline has {stages} stages for {layers} repeated layers, so that stages begin inside layers: "
            f"a rank of each stage sends {size_text(_sent(sends) // stages)} in a step; take fewer ranks or chunks"
        )


def _repeated_layers(names: Iterable[str]) -> int:
    """The length of the longest list of layers: the most numbers at one place in the names of parameters.

    >>> _repeated_layers(["h.0.up.weight", "h.1.up.weight", "head.weight"])
    2
    """
    numbers: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        found = _NUMBERED.search(name)
        if found is not None:
            numbers[name[: found.start(1)]].add(found[1])
    return max((len(found) for found in numbers.values()), default=0)


def _activations(explanation: Explanation) -> list[Communication]:
    """The communication of the forward that moves activations."""
    return [each for each in explanation.communication if each.kind in _MOVES and not each.backward]


def _batch_axes(program: Program) -> set[str]:
    return {axis for each in program.of_kind("input") for shard in each.shards if shard.dim == 0 for axis in shard.axes}


def _parameter_axes(explanation: Explanation) -> list[str]:
    axes = [axis for tensors in explanation.parameters for shard in tensors.shards for axis in shard.axes]
    return list(dict.fromkeys(axes))


def _sent(moves: Iterable[Communication]) -> int:
    return sum(each.sent_bytes for each in moves)


def _in_words(moves: list[Communication]) -> str:
    """The bytes of all, and the place of the largest."""
    largest = max(moves, key=lambda each: each.sent_bytes)
    place = place_text(largest.file, largest.line)
    where = f'in "{largest.module}"' if largest.module else "in the model itself"
    return f"a rank sends {size_text(_sent(moves))} of them in a forward, most {where}" + (
        f" ({place})" if place else ""
    )
