"""Faults of collectives: dropped, done twice, over other axes or dims, with another reduction, not awaited."""

from __future__ import annotations

from math import prod

from stretto.ir.bindings import mlir
from stretto.ir.placement import Shard
from stretto.ir.types import from_mlir, is_tensor

from .editing import Changed, Fault, Site, plain

_STARTED = "_start"


def dropped_reduction(site: Site) -> Changed | None:
    """Every rank goes on with its own part of the sum."""
    match site.call.name:
        case "comm.all_reduce":
            return site.erased(site.emit("aten.clone.default", [site.call.args[0]], site.result.type))
        case "comm.reduce_scatter":
            operand, axes, dim, _ = site.call.args
            chunk = site.type.shape[dim]
            return site.erased(site.emit("comm.shard", [operand, axes, dim, chunk], site.result.type))
    return None


def repeated_part(site: Site) -> Changed | None:
    """In place of gathering, every rank repeats its own part."""
    if site.call.name != "comm.all_gather":
        return None
    operand, _, dim = site.call.args
    return site.erased(site.emit("aten.cat.default", [[operand] * site.size, dim], site.result.type))


def wrong_axis(site: Site) -> Changed | None:
    """A collective over another axis, of the same size."""
    if not site.call.name.removesuffix(_STARTED).startswith(("comm.all", "comm.reduce")):
        return None
    others = [[axis] for axis, size in site.mesh if size == site.size and site.constant("axes") != [axis]]
    if not others:
        return None
    site.set("axes", site.random.choice(others))
    return list(site.op.results)


def wrong_dim(site: Site) -> Changed | None:
    """A gather or scatter over another dim, what it gives brought into the wanted shape."""
    name = site.call.name
    if name not in ("comm.all_gather", "comm.reduce_scatter"):
        return None
    operand, axes, dim, *rest = site.call.args
    shape = from_mlir(operand.type).shape
    gathers = name == "comm.all_gather"
    others = [d for d, n in enumerate(shape) if d != dim and (gathers or n % site.size == 0)]
    if not others:
        return None
    other = site.random.choice(others)
    result_shape = list(shape)
    result_shape[other] = result_shape[other] * site.size if gathers else result_shape[other] // site.size
    moved = site.emit(name, [operand, axes, other, *rest], plain(site.type, result_shape))
    return site.instead(site.emit("aten.reshape.default", [moved, list(site.type.shape)], site.result.type))


def wrong_dim_alone(site: Site) -> Changed | None:
    """A gather or scatter over another dim, its type left as it was."""
    if site.call.name.removesuffix(_STARTED) not in ("comm.all_gather", "comm.reduce_scatter"):
        return None
    others = [d for d in range(len(from_mlir(site.call.args[0].type).shape)) if d != site.constant("dim")]
    if not others:
        return None
    site.set("dim", site.random.choice(others))
    return list(site.op.results)


def wrong_reduction(site: Site) -> Changed | None:
    """A maximum in place of a sum, a sum or a minimum in place of a maximum."""
    if "reduce" not in site.op.attributes:
        return None
    others = {"sum": ["max"], "max": ["sum", "min"], "min": ["max"]}[site.constant("reduce")]
    site.set("reduce", site.random.choice(others))
    return list(site.op.results)


def reduced_twice(site: Site) -> Changed | None:
    """What is reduced already is reduced again."""
    if site.call.name != "comm.all_reduce":
        return None
    again = site.emit_after("comm.all_reduce", [site.result, *site.call.args[1:]], site.result.type)
    return site.instead(again)


def wrong_order(site: Site) -> Changed | None:
    """Gathered parts stand in the order of other ranks."""
    if site.call.name != "comm.all_gather" or site.size == 1:
        return None
    operand, _, dim = site.call.args
    by = from_mlir(operand.type).shape[dim]
    return site.instead(site.emit_after("aten.roll.default", [site.result, [by], [dim]], site.result.type))


def stale_value(site: Site) -> Changed | None:
    """One of several users reads what was there before the reduction."""
    uses = list(site.result.uses) if site.call.name == "comm.all_reduce" else []
    if len(uses) < 2:
        return None
    use = site.random.choice(uses)
    stale = site.emit("aten.clone.default", [site.call.args[0]], site.result.type)
    use.owner.operands[use.operand_number] = stale
    return [stale]


def ranks_part_of_another(site: Site) -> Changed | None:
    """After a scatter every rank holds the next rank's part: scattered from what was rolled by one part."""
    if site.call.name != "comm.reduce_scatter" or site.size == 1:
        return None
    operand, axes, dim, reduce = site.call.args
    rolled = site.emit("aten.roll.default", [operand, [site.type.shape[dim]], [dim]], operand.type)
    return site.instead(site.emit("comm.reduce_scatter", [rolled, axes, dim, reduce], site.result.type))


def wait_left_out(site: Site) -> Changed | None:
    """Users of a collective's result take its future."""
    if site.call.name != "comm.wait":
        return None
    return site.instead(site.op.operands[0])


def waited_twice(site: Site) -> Changed | None:
    """A second wait for the same future."""
    if site.call.name != "comm.wait":
        return None
    return [site.emit("comm.wait", [site.op.operands[0]], site.result.type)]


def never_waited(site: Site) -> Changed | None:
    """Users of an all-reduce's result take its operand; the future is lost."""
    if site.call.name != "comm.wait" or site.op.operands[0].owner.name != "comm.all_reduce_start":
        return None
    return site.erased(site.emit("aten.clone.default", [site.op.operands[0].owner.operands[0]], site.result.type))


def wait_before_start(site: Site) -> Changed | None:
    """A wait stands before the collective that it is for."""
    if site.call.name != "comm.wait":
        return None
    site.op.operation.move_before(site.op.operands[0].owner)
    return list(site.op.results)


def exchanged_futures(site: Site) -> Changed | None:
    """Two waits take each other's futures."""
    if site.call.name != "comm.wait":
        return None
    future = site.op.operands[0]
    others = [f for f in site.earlier(future.type) if f != future]
    if not others:
        return None
    other = site.random.choice(others)
    [use] = other.uses
    wait = use.owner
    if not _is_before(future.owner, wait):
        return None
    site.op.operands[0], wait.operands[0] = other, future
    return [site.result, wait.results[0]]


def first_rows_for_all(site: Site) -> Changed | None:
    """Rows of the batch are used twice: every rank computes with those of the first."""
    for value in site.op.operands:
        if not isinstance(value.owner, mlir.Block) or not is_tensor(value.type):
            continue
        type_ = from_mlir(value.type)
        axes = [axis for axis, placement in type_.placement if placement == Shard(0)]
        if type_.dtype.is_floating_point or not axes or prod(type_.shape) == 0:
            continue
        whole = [type_.shape[0] * _sizes(site)[axes[0]], *type_.shape[1:]]
        gathered = site.emit("comm.all_gather", [value, axes[:1], 0], plain(type_, whole))
        first = site.emit("aten.slice.Tensor", [gathered, 0, 0, type_.shape[0], 1], value.type)
        site.op.operands[list(site.op.operands).index(value)] = first
        return list(site.op.results)
    return None


def _sizes(site: Site) -> dict[str, int]:
    return dict(site.mesh)


def _is_before(first: object, second: object) -> bool:
    return bool(first.operation.is_before_in_block(second.operation))  # type: ignore[attr-defined]


COLLECTIVE_FAULTS: dict[str, Fault] = {
    "dropped reduction": dropped_reduction,
    "own part repeated in place of a gather": repeated_part,
    "wrong axis": wrong_axis,
    "wrong dim": wrong_dim,
    "wrong dim, type as before": wrong_dim_alone,
    "wrong reduction": wrong_reduction,
    "reduced twice": reduced_twice,
    "gathered in a wrong order": wrong_order,
    "value from before the reduction": stale_value,
    "another rank's part scattered": ranks_part_of_another,
    "wait left out": wait_left_out,
    "waited twice": waited_twice,
    "never waited": never_waited,
    "wait before its start": wait_before_start,
    "futures exchanged": exchanged_futures,
    "rows of the batch used twice": first_rows_for_all,
}
"""By kind."""
