"""The text of a communication op in remarks."""

from __future__ import annotations

from ..ir.attributes import from_attribute
from ..ir.bindings import Operation
from ..ir.collectives import COLLECTIVES, collective, synchronous
from ..ir.operations import tuple_types
from ..ir.pipelined_module import MICROBATCH


def collective_text(op: Operation) -> str:
    """A collective or receive as text: "all_reduce over tp", "all_reduce of 3 tensors over dp", "receive from pp=1"."""
    kind = synchronous(op.operation.name).removeprefix("comm.")
    known = collective(op.operation.name)
    if known is not None and known.coalesces:
        tensors = len(tuple_types(op.results[0].type))
        kind = f"{COLLECTIVES[known.coalesces].kind} of {tensors} tensors"
    if "peer" in op.attributes:
        return f"{kind} from {from_attribute(op.attributes['axis'])}={from_attribute(op.attributes['peer'])}"
    axes = [axis if axis != MICROBATCH else "microbatches" for axis in from_attribute(op.attributes["axes"])]
    return f"{kind} over {', '.join(axes)}"
