"""Why a call is compiled though the model has programs already, in words for the log and for the program's remarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..frontend.call import BoundCall
from ..frontend.dynamic_dims import SMALLEST, DynamicDims
from .variants import Key, TensorKind, Variant


def why_sizes(
    key: Key,
    before: Key | None,
    call: BoundCall,
    dims: DynamicDims,
    family: Sequence[Variant],
    sizes: Mapping[str, int],
) -> list[str]:
    """Which sizes differ from those of the call `before`, and why the programs of a `family` do not hold for them."""
    why: list[str] = []
    if before is not None and key.inputs != before.inputs and key.structure == before.structure:
        why = [f"{name} = {size}" for name, size in sizes.items()]
        alike = list(map(_kind, key.inputs)) == list(map(_kind, before.inputs))
        why += _unmarked(key, before, call, dims) if alike else []
    return [*why, *dict.fromkeys(f"the program for other sizes: {each.refusal(sizes)}" for each in family)]


def _kind(each: TensorKind) -> tuple[int, torch.dtype]:
    return len(each[0]), each[1]


def _unmarked(key: Key, before: Key, call: BoundCall, dims: DynamicDims) -> list[str]:
    """The dims of inputs that differ and are not marked, with what would mark them."""
    found = []
    for name, (shape, _), (other, _) in zip(call.names, key.inputs, before.inputs, strict=True):
        marked = {dim % len(shape) for dim in dims.dims.get(name, {})}
        for dim, (size, was) in enumerate(zip(shape, other, strict=True)):
            if size != was and dim not in marked:
                way_out = f' (dynamic={{"{name}": {{{dim}: ...}}}} shares one)' if min(size, was) >= SMALLEST else ""
                found.append(f'dim {dim} of "{name}" is {size}, was {was}{way_out}')
    return found
