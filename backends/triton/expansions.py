"""Ops with a row reduction inside, written as reductions and elementwise ops: softmax, layer norm, their backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ...runtime.program.arguments import Slot
from ...runtime.program.records import Instruction, SlotType
from .region import Declined, Region
from .views import argument, dim_of, operand


@dataclass
class Expansion:
    """The instructions that one is replaced by. New slots are numbered behind those of the region."""

    region: Region
    instruction: Instruction
    types: dict[int, SlotType]
    code: list[Instruction] = field(default_factory=list)

    def emit(self, op: str, *args: object, type_: SlotType, into: int | None = None, **kwargs: object) -> Slot:
        """Append an instruction; its result goes to the slot `into`, or to a new one."""
        slot = max([*self.types, -1]) + 1 if into is None else into
        self.types[slot] = type_
        self.code.append(Instruction(f"aten.{op}", args, kwargs, (slot,)))
        return Slot(slot)

    def type_of(self, slot: int) -> SlotType:
        """The type of a value of the slot's shape in the dtype in which it is computed."""
        stated = self.types[slot]
        return replace(stated, dtype="float64" if stated.dtype == "float64" else "float32")


def expanded(region: Region) -> Region:
    """The region without such ops. Raises Declined for one that works along other dims than the last."""
    types = dict(region.types)
    code: list[Instruction] = []
    for instruction in region.code:
        rule = RULES.get(instruction.op.split(".")[1])
        if rule is None:
            code.append(instruction)
            continue
        expansion = Expansion(region, instruction, types)
        rule(expansion)
        code.extend(expansion.code)
    return replace(region, code=tuple(code), types=types)


def _row(type_: SlotType, dims: int = 1) -> SlotType:
    return replace(type_, shape=(*type_.shape[: len(type_.shape) - dims], *([1] * dims)))


def _last_dim(expansion: Expansion, position: int) -> None:
    rank = len(expansion.types[operand(expansion.instruction)].shape)
    if dim_of(argument(expansion.instruction, position, "dim"), rank) != rank - 1:
        raise Declined(f"{expansion.instruction.op} runs along another dim than the last")


def _shifted(expansion: Expansion) -> tuple[Slot, Slot, SlotType]:
    """x - amax(x), the sum of its exponentials along the last dim, and the type in which they are computed."""
    _last_dim(expansion, 1)
    x = operand(expansion.instruction)
    type_ = expansion.type_of(x)
    largest = expansion.emit("amax.default", Slot(x), [-1], True, type_=_row(type_))
    shifted = expansion.emit("sub.Tensor", Slot(x), largest, type_=type_)
    exponentials = expansion.emit("exp.default", shifted, type_=type_)
    total = expansion.emit("sum.dim_IntList", exponentials, [-1], True, type_=_row(type_))
    return shifted, total, type_


def _out(expansion: Expansion, position: int = 0) -> tuple[int | None, SlotType | None]:
    slot = expansion.instruction.out[position]
    return slot, None if slot is None else expansion.types[slot]


def _softmax(expansion: Expansion) -> None:
    shifted, total, type_ = _shifted(expansion)
    exponentials = expansion.emit("exp.default", shifted, type_=type_)
    slot, stated = _out(expansion)
    expansion.emit("div.Tensor", exponentials, total, type_=stated or type_, into=slot)


def _log_softmax(expansion: Expansion) -> None:
    shifted, total, type_ = _shifted(expansion)
    logarithm = expansion.emit("log.default", total, type_=_row(type_))
    slot, stated = _out(expansion)
    expansion.emit("sub.Tensor", shifted, logarithm, type_=stated or type_, into=slot)


def _softmax_backward(expansion: Expansion) -> None:
    _last_dim(expansion, 2)
    gradient, y = Slot(operand(expansion.instruction)), Slot(operand(expansion.instruction, 1))
    type_ = expansion.type_of(y.index)
    product = expansion.emit("mul.Tensor", gradient, y, type_=type_)
    total = expansion.emit("sum.dim_IntList", product, [-1], True, type_=_row(type_))
    centred = expansion.emit("sub.Tensor", gradient, total, type_=type_)
    slot, stated = _out(expansion)
    expansion.emit("mul.Tensor", centred, y, type_=stated or type_, into=slot)


def _log_softmax_backward(expansion: Expansion) -> None:
    _last_dim(expansion, 2)
    gradient, y = Slot(operand(expansion.instruction)), Slot(operand(expansion.instruction, 1))
    type_ = expansion.type_of(y.index)
    total = expansion.emit("sum.dim_IntList", gradient, [-1], True, type_=_row(type_))
    share = expansion.emit("mul.Tensor", expansion.emit("exp.default", y, type_=type_), total, type_=type_)
    slot, stated = _out(expansion)
    expansion.emit("sub.Tensor", gradient, share, type_=stated or type_, into=slot)


def _layer_norm(expansion: Expansion) -> None:
    x, normalized, weight, bias, eps = (*expansion.instruction.args, *[None] * 5)[:5]
    assert isinstance(x, Slot) and isinstance(normalized, list | tuple)
    dims = list(range(-len(normalized), 0))
    type_ = expansion.type_of(x.index)
    row = _row(type_, len(dims))
    (result, stated), (mean_slot, mean_type), (scale_slot, scale_type) = (_out(expansion, i) for i in range(3))
    mean = expansion.emit("mean.dim", x, dims, True, type_=mean_type or row, into=mean_slot)
    centred = expansion.emit("sub.Tensor", x, mean, type_=type_)
    squares = expansion.emit("mul.Tensor", centred, centred, type_=type_)
    variance = expansion.emit("mean.dim", squares, dims, True, type_=row)
    shifted = expansion.emit("add.Scalar", variance, eps, type_=row)
    scale = expansion.emit("rsqrt.default", shifted, type_=scale_type or row, into=scale_slot)
    value = expansion.emit("mul.Tensor", centred, scale, type_=type_)
    if weight is not None:
        value = expansion.emit("mul.Tensor", value, weight, type_=type_)
    if bias is not None:
        value = expansion.emit("add.Tensor", value, bias, type_=type_)
    expansion.emit("clone.default", value, type_=stated or type_, into=result)


def _layer_norm_backward(expansion: Expansion) -> None:
    gradient, x, normalized, mean, scale, weight, _, wanted = (*expansion.instruction.args, *[None] * 8)[:8]
    assert isinstance(x, Slot) and isinstance(normalized, list | tuple) and isinstance(wanted, list | tuple)
    if list(wanted[1:]) != [False, False]:
        raise Declined(f"{expansion.instruction.op} sums over rows for the gradients of weight and bias")
    dims = list(range(-len(normalized), 0))
    type_ = expansion.type_of(x.index)
    row = _row(type_, len(dims))
    centred = expansion.emit("sub.Tensor", x, mean, type_=type_)
    normal = expansion.emit("mul.Tensor", centred, scale, type_=type_)
    weighted = gradient if weight is None else expansion.emit("mul.Tensor", gradient, weight, type_=type_)
    mean_gradient = expansion.emit("mean.dim", weighted, dims, True, type_=row)
    product = expansion.emit("mul.Tensor", weighted, normal, type_=type_)
    mean_product = expansion.emit("mean.dim", product, dims, True, type_=row)
    first = expansion.emit("sub.Tensor", weighted, mean_gradient, type_=type_)
    second = expansion.emit("mul.Tensor", normal, mean_product, type_=type_)
    slot, stated = _out(expansion)
    difference = expansion.emit("sub.Tensor", first, second, type_=type_)
    expansion.emit("mul.Tensor", difference, scale, type_=stated or type_, into=slot)


RULES: dict[str, Callable[[Expansion], None]] = {
    "_softmax": _softmax, "_log_softmax": _log_softmax, "_softmax_backward_data": _softmax_backward,
    "_log_softmax_backward_data": _log_softmax_backward, "native_layer_norm": _layer_norm,
    "native_layer_norm_backward": _layer_norm_backward,
}  # fmt: skip
"""By torch's name without the overload."""
