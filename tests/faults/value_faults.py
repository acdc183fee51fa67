"""Faults of what one rank computes: other operands, constants, dims, parts; masks left out; calls of other layers."""

from __future__ import annotations

from math import isfinite, prod

import torch
from stretto.ir.bindings import mlir
from stretto.ir.dialects.schemas import Kind, definitions
from stretto.ir.module import argument_records, callee, name_of, operations, result_records
from stretto.ir.types import from_mlir, is_tensor

from .editing import Changed, Fault, Site, pairs_of_one_type, plain, tensors

_SCALARS = ("float", "number", "Optional[float]", "Optional[number]")


def part_of_next_rank(site: Site) -> Changed | None:
    """A rank cuts out the part that is the next one's."""
    return _shard_of_rolled(site, site.type.shape[site.constant("dim")]) if site.call.name == "comm.shard" else None


def part_off_by_one(site: Site) -> Changed | None:
    """A rank's part begins one element too late."""
    return _shard_of_rolled(site, 1) if site.call.name == "comm.shard" else None


def _shard_of_rolled(site: Site, by: int) -> Changed | None:
    operand, axes, dim, chunk = site.call.args
    if from_mlir(operand.type).shape[dim] <= by:
        return None
    rolled = site.emit("aten.roll.default", [operand, [-by], [dim]], operand.type)
    return site.instead(site.emit("comm.shard", [rolled, axes, dim, chunk], site.result.type))


def part_along_wrong_dim(site: Site) -> Changed | None:
    """A rank's part is cut along another dim, and brought into the wanted shape."""
    if site.call.name != "comm.shard":
        return None
    operand, axes, dim, _ = site.call.args
    shape = from_mlir(operand.type).shape
    elements = prod(site.type.shape)
    others = [d for d, n in enumerate(shape) if d != dim and prod(shape) // n * -(-n // site.size) == elements]
    if not others:
        return None
    other = site.random.choice(others)
    chunk = -(-shape[other] // site.size)
    part_type = plain(site.type, [chunk if d == other else n for d, n in enumerate(shape)])
    part = site.emit("comm.shard", [operand, axes, other, chunk], part_type)
    return site.instead(site.emit("aten.reshape.default", [part, list(site.type.shape)], site.result.type))


def wrong_offset(site: Site) -> Changed | None:
    """Where a rank's part of the vocabulary begins is one off."""
    if site.call.name != "comm.offset":
        return None
    site.set("chunk", site.constant("chunk") + site.random.choice([-1, 1]))
    return list(site.op.results)


def mask_left_out(site: Site) -> Changed | None:
    """What should be masked passes."""
    match site.call.name:
        case "comm.mask":
            return site.instead(site.emit("aten.clone.default", [site.call.args[0]], site.result.type))
        case "aten.where.ScalarOther" | "aten.where.self":
            passed = site.call.args[1]
            if from_mlir(passed.type).dtype != site.type.dtype:
                return None
            return site.instead(site.emit("aten.expand.default", [passed, list(site.type.shape)], site.result.type))
    return None


def wrong_mask_extent(site: Site) -> Changed | None:
    """A mask begins one element too early or too late."""
    if site.call.name != "comm.mask":
        return None
    site.set("extent", site.constant("extent") + site.random.choice([-1, 1]))
    return list(site.op.results)


def not_causal(site: Site) -> Changed | None:
    """Tokens see those after them."""
    for name in ("is_causal", "causal"):
        if name in site.op.attributes and site.constant(name):
            site.set(name, False)
            return list(site.op.results)
    return None


def swapped_operands(site: Site) -> Changed | None:
    """Two operands of one type take each other's place."""
    if site.op.operation.name == "func.return":
        return None
    candidates = pairs_of_one_type(tensors(site.op))
    if not candidates:
        return None
    (i, a), (j, b) = site.random.choice(candidates)
    site.op.operands[i], site.op.operands[j] = b, a
    return list(site.op.results)


def wrong_constant(site: Site) -> Changed | None:
    """A scale, a bound, an epsilon has another value."""
    definition = definitions().get(site.call.name)
    if definition is None or definition.name.startswith("comm."):
        return None
    names = [a.name for a in definition.arguments if a.kind is Kind.CONSTANT and a.type in _SCALARS]
    names = [name for name in names if name != "dropout_p"]
    present = [name for name in names if name in site.op.attributes and isfinite(float(site.constant(name)))]
    if not present:
        return None
    name = site.random.choice(present)
    value = site.constant(name)
    site.set(name, value + 1 if isinstance(value, int) else 1.25 * value + 0.125)
    return list(site.op.results)


def wrong_slice(site: Site) -> Changed | None:
    """A slice begins and ends one element too early or too late."""
    if site.call.name != "aten.slice.Tensor" or "start" not in site.op.attributes or "end" not in site.op.attributes:
        return None
    dim, start = site.constant("dim"), site.constant("start")
    extent = from_mlir(site.call.args[0].type).shape[dim]
    end = min(site.constant("end"), extent)
    moves = [by for by in (-1, 1) if start + by >= 0 and end + by <= extent and start >= 0]
    if not moves:
        return None
    by = site.random.choice(moves)
    site.set("start", start + by)
    site.set("end", end + by)
    return list(site.op.results)


def reshaped_in_place_of_transposed(site: Site) -> Changed | None:
    """Dims are swapped in the shape, but elements stay where they are."""
    if site.call.name not in ("aten.t.default", "aten.transpose.int", "aten.permute.default"):
        return None
    shape = list(site.type.shape)
    return site.instead(site.emit("aten.reshape.default", [site.call.args[0], shape], site.result.type))


def neighbour(site: Site) -> Changed | None:
    """An operand is another value of the same type."""
    if site.op.operation.name in ("func.return", "comm.wait"):
        return None
    candidates = [(i, other) for i, v in tensors(site.op) for other in site.earlier(v.type) if other != v]
    if not candidates:
        return None
    i, other = site.random.choice(candidates)
    site.op.operands[i] = other
    return list(site.op.results)


def left_out(site: Site) -> Changed | None:
    """An operation on one tensor passes it on as it is."""
    values = tensors(site.op)
    name = site.call.name
    if len(values) != 1 or not name.startswith("aten.") or len(list(site.op.results)) != 1 or name in _COPIES:
        return None
    operand = from_mlir(values[0][1].type)
    if not is_tensor(site.result.type) or (operand.shape, operand.dtype) != (site.type.shape, site.type.dtype):
        return None
    return site.instead(site.emit("aten.clone.default", [values[0][1]], site.result.type))


_COPIES = (
    "aten.clone.default", "aten.reshape.default", "aten.expand.default", "aten._to_copy.default", "aten.slice.Tensor",
    "aten.view.default",
)  # fmt: skip
"""What gives an operand of the same shape and dtype as it is."""


def doubled(site: Site) -> Changed | None:
    """A value is twice what it should be."""
    results = list(site.op.results)
    if len(results) != 1 or not is_tensor(results[0].type) or not site.type.dtype.is_floating_point:
        return None
    return site.instead(site.emit_after("aten.mul.Scalar", [site.result, 2.0], site.result.type))


def added_twice(site: Site) -> Changed | None:
    """A term is added twice."""
    if site.call.name != "aten.add.Tensor" or site.call.args[1].type != site.result.type:
        return None
    return site.instead(site.emit_after("aten.add.Tensor", [site.result, site.call.args[1]], site.result.type))


def term_left_out(site: Site) -> Changed | None:
    """A term, a residual or one of two gradients of a tied weight, is not added."""
    if site.call.name != "aten.add.Tensor":
        return None
    kept = [v for v in site.call.args if from_mlir(v.type).shape == site.type.shape]
    if not kept:
        return None
    return site.instead(site.emit("aten.clone.default", [site.random.choice(kept)], site.result.type))


def only_the_first_summed(site: Site) -> Changed | None:
    """Of what is to be summed, or whose mean or maximum is to be taken, only the first element is."""
    if site.call.name not in ("aten.sum.dim_IntList", "aten.mean.dim", "aten.amax.default"):
        return None
    value = site.call.args[0]
    operand = from_mlir(value.type)
    if operand.dtype == torch.bool or operand.dtype != site.type.dtype:
        return None
    shape = list(operand.shape)
    for dim in site.constant("dim"):
        shape[dim] = 1
        value = site.emit("aten.slice.Tensor", [value, dim, 0, 1, 1], plain(operand, shape))
    return site.instead(site.emit("aten.reshape.default", [value, list(site.type.shape)], site.result.type))


def swapped_results(site: Site) -> Changed | None:
    """Two results of one type take each other's place."""
    results = [(i, r) for i, r in enumerate(site.op.results) if is_tensor(r.type) and list(r.uses)]
    candidates = pairs_of_one_type(results)
    if not candidates:
        return None
    (_, a), (_, b) = site.random.choice(candidates)
    uses = [[(u.owner, u.operand_number) for u in v.uses] for v in (a, b)]
    for value, uses_of_other in ((b, uses[0]), (a, uses[1])):
        for owner, number in uses_of_other:
            owner.operands[number] = value
    results_after = list(site.op.results)
    i, j = results_after.index(a), results_after.index(b)
    results_after[i], results_after[j] = b, a
    return results_after


def other_layers_parameter(site: Site) -> Changed | None:
    """A layer computes with a parameter of another."""
    name = callee(site.op)
    others = [op for op in operations(site.function) if name and callee(op) == name and op != site.op]
    candidates = [
        (i, other.operands[i])
        for other in others
        for i, v in enumerate(site.op.operands)
        if all(isinstance(x.owner, mlir.Block) for x in (v, other.operands[i])) and v != other.operands[i]
    ]
    if not candidates:
        return None
    i, value = site.random.choice(candidates)
    site.op.operands[i] = value
    return list(site.op.results)


def layer_left_out(site: Site) -> Changed | None:
    """A layer's last result is what it was given."""
    if callee(site.op) is None:
        return None
    candidates = [(r, v) for r in site.op.results for v in site.op.operands if r.type == v.type and list(r.uses)]
    candidates = [(r, v) for r, v in candidates if not isinstance(v.owner, mlir.Block)]
    if not candidates:
        return None
    result, value = site.random.choice(candidates)
    result.replace_all_uses_with(value)
    return [value if r == result else r for r in site.op.results]


def gradients_swapped(site: Site) -> Changed | None:
    """Two parameters of one shape get each other's gradient."""
    pairs = pairs_of_one_type(_gradients(site))
    if not pairs:
        return None
    (i, a), (j, b) = site.random.choice(pairs)
    site.op.operands[i], site.op.operands[j] = b, a
    return []


def gradient_of_another(site: Site) -> Changed | None:
    """Two parameters of one shape get the gradient of one of them."""
    pairs = pairs_of_one_type(_gradients(site))
    if not pairs:
        return None
    (i, _), (_, b) = site.random.choice(pairs)
    site.op.operands[i] = b
    return []


def doubled_gradient(site: Site) -> Changed | None:
    """A parameter gets twice its gradient."""
    gradients = _gradients(site)
    if not gradients:
        return None
    i, value = site.random.choice(gradients)
    site.op.operands[i] = site.emit("aten.mul.Scalar", [value, 2.0], value.type)
    return [site.op.operands[i]]


def _gradients(site: Site) -> list[tuple[int, mlir.Value]]:
    if site.op.operation.name != "func.return" or name_of(site.function) != "main":
        return []
    records = result_records(site.function)
    return [(i, v) for i, v in enumerate(site.op.operands) if records[i].get("kind") == "gradient"]


def other_input(site: Site) -> Changed | None:
    """Labels are read in place of tokens, or tokens in place of labels."""
    if name_of(site.function) != "main":
        return None
    arguments = list(site.function.regions[0].blocks[0].arguments)
    records = argument_records(site.function)
    inputs = [a for a, r in zip(arguments, records, strict=True) if r.get("kind") == "input"]
    read = [(i, v) for i, v in enumerate(site.op.operands) if v in inputs]
    candidates = [(i, other) for i, v in read for other in inputs if other != v and other.type == v.type]
    if not candidates:
        return None
    i, value = site.random.choice(candidates)
    site.op.operands[i] = value
    return list(site.op.results)


VALUE_FAULTS: dict[str, Fault] = {
    "part of the next rank": part_of_next_rank,
    "part off by one": part_off_by_one,
    "part along a wrong dim": part_along_wrong_dim,
    "wrong offset of a part": wrong_offset,
    "mask left out": mask_left_out,
    "wrong extent of a mask": wrong_mask_extent,
    "causal mask left out": not_causal,
    "operands swapped": swapped_operands,
    "wrong constant": wrong_constant,
    "wrong slice": wrong_slice,
    "reshape in place of a transpose": reshaped_in_place_of_transposed,
    "neighbour in place of an operand": neighbour,
    "operation left out": left_out,
    "doubled value": doubled,
    "term added twice": added_twice,
    "term left out": term_left_out,
    "only the first summed": only_the_first_summed,
    "results swapped": swapped_results,
    "parameter of another layer": other_layers_parameter,
    "layer left out": layer_left_out,
    "gradients swapped": gradients_swapped,
    "gradient of another parameter": gradient_of_another,
    "doubled gradient": doubled_gradient,
    "labels for tokens": other_input,
}
"""By kind."""
