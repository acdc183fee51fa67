"""The values of one traced run, looked up by their elements: results, and what operations compute inside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from ...ir.equivalence.trace import Fingerprint, Trace, same_elements

Tables = dict[int, tuple[Tensor, Tensor]]
"""By the number of elements: the sums and sizes of all fingerprints."""


class Values:
    """The values of a run, or of a run for each microbatch: of `trace`, and of the `others` where they are given."""

    def __init__(self, trace: Trace, tolerance: float, others: Sequence[Trace] = ()) -> None:
        self.trace = trace
        self.tolerance = tolerance
        if others:
            prints = [[*each.fingerprints.values(), *each.subvalues] for each in (trace, *others)]
            self._of_microbatch = [self._by_count(own) for own in prints]
            self._tables = self._by_count(list(chain.from_iterable(prints)))
            return
        whole = [each for number, each in trace.fingerprints.items() if not trace.parts.get(number)]
        shared = [*whole, *trace.subvalues]
        cut = [trace.fingerprints[number] for number, parts in trace.parts.items() if parts]
        self._tables = self._by_count([*shared, *cut, *chain.from_iterable(trace.parts.values())])
        count = max((len(parts) for parts in trace.parts.values()), default=0)
        self._of_microbatch = [
            self._by_count([*shared, *(parts[m] for parts in trace.parts.values() if parts)]) for m in range(count)
        ]

    def holds(self, trace: Trace, number: int) -> bool:
        """Whether a value of another trace is among these, or the parts of all its microbatches are.

        A value that is computed for one microbatch must be one of that microbatch here.
        """
        wanted, parts = trace.fingerprints.get(number), trace.parts.get(number, ())
        if wanted is None:
            return False
        if number in trace.recognised:
            return True
        maker = trace.flow.makers.get(number)
        microbatch = None if maker is None else maker.microbatch
        if microbatch is not None and microbatch < len(self._of_microbatch):
            return self._is_in(self._of_microbatch[microbatch], wanted)
        return self.knows(wanted) or (len(parts) > 0 and all(self.knows(part) for part in parts))

    def knows(self, wanted: Fingerprint) -> bool:
        """Whether a value, of any microbatch, is among these."""
        return self._is_in(self._tables, wanted)

    def _is_in(self, tables: Tables, wanted: Fingerprint) -> bool:
        if wanted.count not in tables:
            return False
        sums, sizes = tables[wanted.count]
        return bool(same_elements(sums, sizes, wanted, self.tolerance).any())

    def _by_count(self, prints: Sequence[Fingerprint]) -> Tables:
        by_count: dict[int, list[Fingerprint]] = defaultdict(list)
        for fingerprint in prints:
            by_count[fingerprint.count].append(fingerprint)
        return {count: self._table(of_count) for count, of_count in by_count.items()}

    def _table(self, prints: Sequence[Fingerprint]) -> tuple[Tensor, Tensor]:
        return torch.stack([fingerprint.sums for fingerprint in prints]), torch.tensor(
            [fingerprint.size for fingerprint in prints]
        ).double()
