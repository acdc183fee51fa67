"""Rules of `nn.random`: every element is a function of its place, so that each rank can make any part by itself."""

from __future__ import annotations

from ...ir.placement import AxisPlacement, Shard
from .building import P, R, Rule, row
from .call import Call
from .row import Row


def drawn(call: Call) -> list[Row]:
    """Cut as the tensor that it is used with, whose values are not read; whole where there is none or a partial one."""
    shards = [Shard(d) for d in range(len(call.out().shape))]
    if call.maybe("like") is None:
        return [row([d], [R, R]) for d in shards]
    follow: list[tuple[AxisPlacement, AxisPlacement]] = [*((d, d) for d in shards), (R, P)]
    cut = [(wanted, given) for wanted in shards for given in (R, P)]
    return [row([wanted], [R, R, given]) for wanted, given in (*follow, *cut)]


TABLE: dict[str, Rule] = {"nn.random": drawn}
"""The rule of each op that draws."""
