"""Sums that grow from addend to addend, such as gradients over microbatches, in the memory of their first result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from torch import Tensor

from ..program.arguments import Slot
from ..program.records import Instruction

ADD = "aten.add.Tensor"


def growing(code: Sequence[Instruction], given: Collection[int], kept: Collection[int]) -> frozenset[int]:
    """The adds, by index, that may overwrite their first operand: the result of an add that nothing else reads.

    The slots in `given` are set when the code begins, those in `kept` are read when it has ended.
    """
    reads = Counter(slot for each in code for slot in each.reads())
    writes = Counter([*given, *(slot for each in code for slot in each.writes())])
    adds = [each for each in code if each.op == ADD and not each.kwargs]
    made = {slot for each in adds for slot in each.writes() if writes[slot] == 1}
    return frozenset(
        index
        for index, each in enumerate(code)
        if each.op == ADD
        and not each.kwargs
        and isinstance(each.args[0], Slot)
        and each.args[0].index in made
        and reads[each.args[0].index] == 1
        and each.args[0].index not in kept
    )


def added(total: Tensor, addend: Tensor | float) -> Tensor:
    """The sum of both, in the memory of `total` where it fits there.

    >>> import torch
    >>> total = torch.ones(2)
    >>> added(total, torch.ones(2)) is total
    True
    """
    if isinstance(addend, Tensor) and addend.shape == total.shape and addend.dtype == total.dtype:
        return total.add_(addend)
    return total + addend
