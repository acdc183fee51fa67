"""The programs of one model that are kept, by the calls that they are for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from .variants import Key, Variant

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
