"""The bytes that a rank sends in a collective, by the ring algorithms; what a byte costs beside one in memory.

There is no bandwidth and no latency of a link yet. On a ring of n ranks each step sends 1/n of the tensor. A
reduce-scatter, an all-gather or an all-to-all takes n - 1 steps; an all-reduce is a reduce-scatter and an all-gather. A
permute sends the whole tensor once.

Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (JPDC 2009);
the bus bandwidth factors in NCCL's tests (nccl-tests, doc/PERFORMANCE.md) are the same. How many rounds each
collective takes is `rounds` in `ir/collectives.py`.
"""

from __future__ import annotations

from ..ir.collectives import COLLECTIVES

ROUNDS = {each.kind: each.rounds for each in COLLECTIVES.values()}
"""How many times n - 1 steps a collective takes: 2 for an all-reduce, else 1."""

_ONE_MESSAGE = frozenset(each.kind for each in COLLECTIVES.values() if each.is_one_message)

LINK_BYTE = 20.0
"""The time of one byte on a link between accelerators, in bytes moved in an accelerator's own memory.

Between what the data sheets of an H100 give: 3.35 TB/s of memory over 0.45 TB/s of NVLink in one direction (7), and
over 0.05 TB/s of a 400 Gb/s network (67).
"""


def sent_bytes(kind: str, tensor_bytes: float, ranks: int) -> float:
    """The bytes that a rank sends in a collective over some ranks.

    `tensor_bytes` is the largest tensor that a rank takes or gives: an all-gather's result, a reduce-scatter's operand.

    >>> sent_bytes("all_reduce", 8, 4), sent_bytes("all_gather", 8, 4)
    (12.0, 6.0)
    """
    if kind in _ONE_MESSAGE:
        return float(tensor_bytes) if ranks > 1 else 0.0
    return ROUNDS[kind] * (tensor_bytes * (ranks - 1) / ranks)


def ring_bytes(kind: str, tensor_bytes: int, ranks: int) -> int:
    """The same for reports: whole bytes, rounded down in each round."""
    if kind in _ONE_MESSAGE:
        return tensor_bytes if ranks > 1 else 0
    return ROUNDS[kind] * (tensor_bytes * (ranks - 1) // ranks)
