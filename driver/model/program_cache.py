"""The programs of one model by key: look-up, eviction, why none was found. `compiled_module.py` compiles another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ...frontend.capture.call import BoundCall
from ...frontend.dynamic_sizes.dynamic_dims import SMALLEST, DynamicDims
from .variants import Key, TensorKind, Variant

MAX_VARIANTS = 32
"""Programs kept for one model; past it the least recently called one is dropped. All run on the same threads."""


class ProgramCache:
    """Programs by key, least recently called first. Programs of one key differ in the attributes that they read."""

    def __init__(self) -> None:
        self._keys: OrderedDict[Variant, Key] = OrderedDict()
        """Ordered by the last call."""
        self._by_key: dict[Key, list[Variant]] = {}

    def find(self, key: Key, modules: Sequence[nn.Module]) -> Variant | None:
        """The program for a call with this key while the modules have these attributes; None: compile one."""
        variant = next((variant for variant in self._by_key.get(key, ()) if variant.read.are_unchanged(modules)), None)
        if variant is not None:
            self._keys.move_to_end(variant)
        return variant

    def add(self, key: Key, variant: Variant) -> None:
        """Keep a program, as the one called last."""
        self._keys[variant] = key
        self._by_key.setdefault(key, []).append(variant)
        if len(self._keys) > MAX_VARIANTS:
            oldest, oldest_key = self._keys.popitem(last=False)
            self._by_key[oldest_key].remove(oldest)
            if not self._by_key[oldest_key]:
                del self._by_key[oldest_key]

    def why_compiled(self, key: Key) -> str:
        """How a call differs from the last one, for the log."""
        if self.last is None:
            return "first call"
        return f"{key.differs_in(self._keys[self.last]) or 'an attribute'} changed"

    @property
    def last_key(self) -> Key | None:
        """The key of the last call."""
        return None if self.last is None else self._keys[self.last]

    @property
    def last(self) -> Variant | None:
        """The program called last."""
        return next(reversed(self._keys), None)


def why_other_program(
    key: Key,
    before: Key | None,
    call: BoundCall,
    dims: DynamicDims,
    family: Sequence[Variant],
    sizes: Mapping[str, int],
) -> list[str]:
    """For the log: which sizes differ from the call `before`, and why no program of the `family` is valid for them."""
    why: list[str] = []
    if before is not None and key.inputs != before.inputs and key.structure == before.structure:
        why = [f"{name} = {size}" for name, size in sizes.items()]
        same_kinds = list(map(_kind, key.inputs)) == list(map(_kind, before.inputs))
        why += _unmarked(key, before, call, dims) if same_kinds else []
    return [*why, *dict.fromkeys(f"the program for other sizes: {variant.refusal(sizes)}" for variant in family)]


def _kind(tensor: TensorKind) -> tuple[int, torch.dtype]:
    return len(tensor[0]), tensor[1]


def _unmarked(key: Key, before: Key, call: BoundCall, dims: DynamicDims) -> list[str]:
    """Input dims that differ and are not dynamic, with the option that would make them dynamic."""
    lines = []
    for name, (shape, _), (old_shape, _) in zip(call.names, key.inputs, before.inputs, strict=True):
        marked = {dim % len(shape) for dim in dims.dims.get(name, {})}
        for dim, (size, old_size) in enumerate(zip(shape, old_shape, strict=True)):
            if size != old_size and dim not in marked:
                hint = f' (dynamic={{"{name}": {{{dim}: ...}}}} shares one)' if min(size, old_size) >= SMALLEST else ""
                lines.append(f'dim {dim} of "{name}" is {size}, was {old_size}{hint}')
    return lines
