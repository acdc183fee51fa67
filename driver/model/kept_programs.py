"""The programs of one model that are kept, by the calls that they are for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ...frontend.capture.call import BoundCall
from ...frontend.dynamic_sizes.dynamic_dims import SMALLEST, DynamicDims
from .variants import Key, TensorKind, Variant

MAX_VARIANTS = 32
"""Programs kept for one model; beyond it the one that was not called for longest goes. All run on the same threads."""


class KeptPrograms:
    """Of equal keys there may be several, for other values of the attributes that they have read."""

    def __init__(self) -> None:
        self._keys: OrderedDict[Variant, Key] = OrderedDict()
        """The one called last stands at the end."""
        self._by_key: dict[Key, list[Variant]] = {}

    def find(self, key: Key, modules: Sequence[nn.Module]) -> Variant | None:
        """The program for a call in the state that the modules are in."""
        found = next((each for each in self._by_key.get(key, ()) if each.read.hold(modules)), None)
        if found is not None:
            self._keys.move_to_end(found)
        return found

    def add(self, key: Key, variant: Variant) -> None:
        """Keep one more, as the one called last."""
        self._keys[variant] = key
        self._by_key.setdefault(key, []).append(variant)
        if len(self._keys) > MAX_VARIANTS:
            oldest, its = self._keys.popitem(last=False)
            self._by_key[its].remove(oldest)
            if not self._by_key[its]:
                del self._by_key[its]

    def why_another(self, key: Key) -> str:
        """What a call differs in from the last one, for a log."""
        if self.last is None:
            return "first call"
        return f"{key.differs_in(self._keys[self.last]) or 'an attribute'} changed"

    @property
    def last_key(self) -> Key | None:
        """Of the one called last."""
        return None if self.last is None else self._keys[self.last]

    @property
    def last(self) -> Variant | None:
        """The one called last."""
        return next(reversed(self._keys), None)


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
