"""What a floating-point operation takes beside a byte moved, and torch's formulas for how many an op has: no IR."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

FLOPS_PER_BYTE = 100.0
"""Floating-point operations in the time in which one byte of memory is moved.

Between a CPU's, about 10, and 295 of an H100 by its data sheet (989 TFLOP/s in bf16 over 3.35 TB/s).
"""


@cache
def flop_formulas() -> dict[str, Any]:
    """Torch's formulas by our names of operations."""
    found = {}
    for packet, formula in flop_registry.items():
        if isinstance(packet, torch._ops.OpOverloadPacket):
            namespace, name = packet._qualified_op_name.split("::")
            overloads = packet.overloads()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            found.update({f"{namespace}.{name}.{overload}": formula for overload in overloads})
    return found
