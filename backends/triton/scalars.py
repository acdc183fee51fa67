"""One elementwise instruction as text: its operands at their indices, in the dtype in which torch computes it."""

from __future__ import annotations

import torch

from ...runtime.program.arguments import Slot
from ...runtime.program.records import Instruction
from .indexing import Index, broadcast
from .pointwise import COMPARISONS, LOGICAL, TABLE, literal
from .region import Declined, Region
from .values import Guard, Values

CASTS = frozenset({"_to_copy"})
WHERE = frozenset({"where", "masked_fill"})
POINTWISE = frozenset(TABLE) | CASTS | WHERE | {"bitwise_not"}
"""By torch's name without the overload."""


def pointwise_text(values: Values, instruction: Instruction, index: Index, guard: Guard) -> str:
    """The value of an elementwise instruction. Raises Declined for an op that no table lists."""
    region, name = values.region, instruction.op.split(".")[1]
    slot = instruction.writes()[0]
    result = region.dtype(slot)

    def read(value: object, dtype: torch.dtype) -> str | None:
        if isinstance(value, Slot):
            own = broadcast(index, region.shape(value.index))
            return values.cast_to(values.value(value.index, own, guard), value.index, dtype)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bool | int | float):
            return literal(value, dtype)
        raise Declined(f"{instruction.op} takes {value!r}")

    arguments = instruction.args
    if name in CASTS:
        return f"{read(arguments[0], result)}"
    if name in WHERE:
        condition, chosen, other = arguments if name == "where" else (arguments[1], arguments[2], arguments[0])
        return f"tl.where({read(condition, torch.bool)}, {read(chosen, result)}, {read(other, result)})"
    if name == "bitwise_not":
        return f"{read(arguments[0], result)} == 0" if result is torch.bool else f"~{read(arguments[0], result)}"
    if name not in TABLE:
        raise Declined(f"no kernel computes {instruction.op}")
    dtype = _common_dtype(region, instruction) if name in COMPARISONS else result
    dtype = torch.bool if name in LOGICAL else dtype
    if dtype is torch.bool and name not in LOGICAL and not name.startswith("bitwise"):
        dtype = _booleans(instruction)
    try:
        return TABLE[name](
            *(read(each, dtype) for each in arguments), **{k: read(v, dtype) for k, v in instruction.kwargs.items()}
        )
    except (KeyError, TypeError):
        raise Declined(f"no kernel computes {instruction.op} with {instruction.args[1:]!r:.60}") from None


def _common_dtype(region: Region, instruction: Instruction) -> torch.dtype:
    """The dtype in which torch compares two operands."""
    first, second = instruction.args[:2]
    example = _example(region, first)
    if isinstance(second, Slot):
        return torch.result_type(example, _example(region, second))
    return torch.result_type(example, second) if isinstance(second, bool | int | float) else example.dtype


def _example(region: Region, value: object) -> torch.Tensor:
    if not isinstance(value, Slot):
        raise Declined(f"it compares {value!r}")
    return torch.empty([1] * len(region.shape(value.index)), dtype=region.dtype(value.index), device="meta")


def _booleans(instruction: Instruction) -> torch.dtype:
    if instruction.op.split(".")[1] in COMPARISONS:
        return torch.int8
    raise Declined(f"{instruction.op} of booleans")
