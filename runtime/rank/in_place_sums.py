"""In-place accumulation of long sums, such as gradients over microbatches, in the memory of their first result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from torch import Tensor

from ..program.arguments import Slot
from ..program.records import Instruction

ADD = "aten.add.Tensor"


def in_place_adds(code: Sequence[Instruction], arguments: Collection[int], kept: Collection[int]) -> frozenset[int]:
    """The indices of adds that may overwrite their first operand: the result of an add that nothing else reads.

    The slots in `arguments` are set before the code, those in `kept` are read after it.
    """
    reads = Counter(slot for instruction in code for slot in instruction.reads())
    writes = Counter([*arguments, *(slot for instruction in code for slot in instruction.writes())])
    adds = [instruction for instruction in code if instruction.op == ADD and not instruction.kwargs]
    sums = {slot for instruction in adds for slot in instruction.writes() if writes[slot] == 1}
    return frozenset(
        index
        for index, instruction in enumerate(code)
        if instruction.op == ADD
        and not instruction.kwargs
        and isinstance(instruction.args[0], Slot)
        and instruction.args[0].index in sums
        and reads[instruction.args[0].index] == 1
        and instruction.args[0].index not in kept
    )


def add_in_place(total: Tensor, term: Tensor | float) -> Tensor:
    """The sum of both, in the memory of `total` where shape and dtype allow it.

    >>> import torch
    >>> total = torch.ones(2)
    >>> add_in_place(total, torch.ones(2)) is total
    True
    """
    if isinstance(term, Tensor) and term.shape == total.shape and term.dtype == total.dtype:
        return total.add_(term)
    return total + term
