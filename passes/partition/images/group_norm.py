"""Group norm of images that are cut on height, width or depth: sums of each group are all-reduced over the ranks.

Forward reduces the sum, then the sum of squared distances from the mean; backward the sum of the gradient, and that of
its product with the normalised image, both weighted. Each time one number for a group and an image is communicated. The
gradients of weight and bias are sums over the rank's own part.

Source: Wu and He, "Group normalization" (arXiv:1803.08494).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from math import prod

import torch

from ....ir.bindings import Value, mlir
from ....ir.collectives import ALL_REDUCE
from ....ir.operations import Call
from ....ir.types import TensorType, from_mlir
from ..emitter import LocalEmitter, Shards, Types
from ..vocabulary import cast
from .cut_dims import Arguments, typed


class _Groups:
    """The groups of one call. While they are computed with, values are (batch, groups, rest of a group)."""

    def __init__(self, emitter: LocalEmitter, arguments: Arguments, cuts: Sequence[Shards], dtype: torch.dtype) -> None:
        self.emitter, self.cuts, self.dtype = emitter, cuts, dtype
        self.image = image = replace(from_mlir(arguments["input"].type), dtype=dtype)
        batch, channels, *space = image.shape
        groups: int = arguments["group"]
        self.grouped = TensorType(dtype, (batch, groups, prod(image.shape[1:]) // groups))
        self.by_channel = TensorType(dtype, (batch, channels, prod(space)))
        self.statistic = TensorType(dtype, (batch, groups, 1))
        extents = {cut.dim: cut.extent for cut in cuts}
        self.count = channels // groups * prod(extents.get(d, n) for d, n in enumerate(image.shape) if d > 1)
        """Elements of a group, on all ranks together."""

    def viewed(self, value: Value, type_: TensorType) -> Value:
        """The value in another shape, in the dtype of the statistics."""
        wide = cast(self.emitter, value, type_.dtype)
        return self.emitter.op("aten.reshape.default", wide, list(type_.shape), type=type_)

    def op(self, name: str, one: Value, other: object) -> Value:
        """A pointwise op of grouped values."""
        return self.emitter.op(name, one, other, type=self.grouped)

    def mean(self, grouped: Value) -> Value:
        """The mean of each group, on all ranks."""
        local = self.emitter.op("aten.sum.dim_IntList", grouped, [2], True, type=self.statistic)
        axes = [axis for cut in self.cuts for axis in cut.axes]
        total = self.emitter.like(ALL_REDUCE, local, axes, "sum")
        return self.emitter.like("aten.div.Scalar", total, float(self.count))

    def masked(self, grouped: Value) -> Value:
        """The value with the padding of uneven chunks set to zero."""
        uneven = [cut for cut in self.cuts if cut.extent != cut.chunk * self.emitter.size(cut.axes)]
        if not uneven:
            return grouped
        value = self.viewed(grouped, TensorType(self.dtype, self.image.shape))
        for cut in uneven:
            value = self.emitter.like("comm.mask", value, list(cut.axes), cut.dim, cut.chunk, cut.extent, 0.0)
        return self.viewed(value, self.grouped)

    def scaled(self, grouped: Value, weight: Value | None, name: str = "aten.mul.Tensor") -> Value:
        """The value times a number for each channel, or plus it."""
        if weight is None:
            return grouped
        channels = TensorType(self.dtype, (self.by_channel.shape[1], 1))
        column = self.viewed(weight, channels)
        by_channel = self.emitter.op(name, self.viewed(grouped, self.by_channel), column, type=self.by_channel)
        return self.viewed(by_channel, self.grouped)

    def of_channels(self, grouped: Value, type_: TensorType) -> Value:
        """The sum for each channel of what this rank has."""
        by_channel = self.viewed(grouped, self.by_channel)
        total = self.emitter.op(
            "aten.sum.dim_IntList", by_channel, [0, 2], False, type=replace(type_, dtype=self.dtype)
        )
        return cast(self.emitter, total, type_.dtype)

    def whole(self, grouped: Value, type_: TensorType) -> Value:
        """The value in the shape of the images."""
        image = TensorType(self.dtype, self.image.shape)
        return typed(cast(self.emitter, self.viewed(grouped, image), type_.dtype), type_)


def _forward(emitter: LocalEmitter, call: Call, cuts: Sequence[Shards], types: Types) -> list[Value | None]:
    arguments, [out, *statistics] = Arguments(call), types
    assert out is not None
    groups = _Groups(emitter, arguments, cuts, _wide(arguments, [t for t in types if t is not None]))
    x = groups.viewed(arguments["input"], groups.grouped)
    mean = groups.mean(x)
    centred = groups.op("aten.sub.Tensor", x, mean)
    inside = groups.masked(centred)
    variance = groups.mean(groups.op("aten.mul.Tensor", inside, inside))
    deviation = emitter.like("aten.rsqrt.default", emitter.like("aten.add.Scalar", variance, arguments["eps"]))
    normal = groups.op("aten.mul.Tensor", centred, deviation)
    y = groups.scaled(groups.scaled(normal, arguments["weight"]), arguments["bias"], "aten.add.Tensor")
    saved = [
        None if type_ is None else cast(emitter, groups.viewed(value, replace(type_, dtype=groups.dtype)), type_.dtype)
        for value, type_ in zip((mean, deviation), statistics, strict=True)
    ]
    return [groups.whole(y, out), *saved]


def _backward(emitter: LocalEmitter, call: Call, cuts: Sequence[Shards], types: Types) -> list[Value | None]:
    arguments, [of_input, of_weight, of_bias] = Arguments(call), types
    groups = _Groups(emitter, arguments, cuts, _wide(arguments, [t for t in types if t is not None]))
    dy, x = (groups.viewed(arguments[name], groups.grouped) for name in ("grad_out", "input"))
    mean, deviation = (groups.viewed(arguments[name], groups.statistic) for name in ("mean", "rstd"))
    normal = groups.op("aten.mul.Tensor", groups.op("aten.sub.Tensor", x, mean), deviation)
    product = groups.op("aten.mul.Tensor", dy, normal)
    results: list[Value | None] = [None, None, None]
    if of_input is not None:
        weighted = groups.scaled(dy, arguments["weight"])
        shares = groups.mean(weighted), groups.mean(groups.op("aten.mul.Tensor", weighted, normal))
        centred = groups.op("aten.sub.Tensor", weighted, shares[0])
        projected = groups.op("aten.sub.Tensor", centred, groups.op("aten.mul.Tensor", normal, shares[1]))
        results[0] = groups.whole(groups.op("aten.mul.Tensor", projected, deviation), of_input)
    if of_weight is not None:
        results[1] = groups.of_channels(product, of_weight)
    if of_bias is not None:
        results[2] = groups.of_channels(dy, of_bias)
    return results


def _wide(arguments: Arguments, results: Sequence[TensorType]) -> torch.dtype:
    """The widest dtype of images, parameters and statistics, and float32 at least: sums over ranks lose nothing."""
    given = [from_mlir(value.type).dtype for value in arguments.values.values() if isinstance(value, mlir.Value)]
    return reduce(torch.promote_types, [*given, *(type_.dtype for type_ in results)], torch.float32)


LOWERINGS: dict[str, Callable[[LocalEmitter, Call, Sequence[Shards], Types], list[Value | None]]] = {
    "aten.native_group_norm.default": _forward,
    "aten.native_group_norm_backward.default": _backward,
}
"""The local computation of each op that reduces statistics of groups."""
