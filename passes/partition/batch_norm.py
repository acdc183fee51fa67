"""Batch norm over a batch that ranks share: sums are reduced over the axis, so that statistics are the whole batch's.

Forward reduces the sum, then the sum of squared distances from the mean; backward reduces the sum of the gradient, and
that of its product with the normalised input. One number a channel crosses ranks each time, never an image.

Source: Ioffe and Szegedy, "Batch normalization" (arXiv:1502.03167); running statistics as torch keeps them, with the
unbiased variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

from ...ir.bindings import Value
from ...ir.collectives import ALL_REDUCE
from ...ir.dialects.schemas import definitions
from ...ir.operations import Call
from ...ir.types import TensorType, from_mlir
from .emitter import LocalEmitter, Shards, Types


class _Images:
    """The images of one call: (batch, channels, *space), one dim but the channels' shared by ranks."""

    def __init__(self, emitter: LocalEmitter, shards: Shards, image: TensorType, statistic: TensorType) -> None:
        self.emitter = emitter
        self.shards = shards
        self.image = replace(image, dtype=statistic.dtype)
        self.statistic = replace(statistic, shape=(image.shape[1],))
        self.dims = [d for d in range(len(image.shape)) if d != 1]
        self.count = shards.extent * prod(image.shape[d] for d in self.dims if d != shards.dim)
        """Elements that one channel's statistics are about, on all ranks."""

    def wide(self, name: str, *args: Any) -> Value:
        """An operation whose result is shaped as the images."""
        return self.emitter.op(name, *args, type=self.image)

    def each(self, name: str, *args: Any) -> Value:
        """An operation whose result is one number a channel."""
        return self.emitter.op(name, *args, type=self.statistic)

    def cast(self, value: Value, dtype: Any) -> Value:
        """The value in another dtype."""
        type_ = from_mlir(value.type)
        if type_.dtype == dtype:
            return value
        return self.emitter.op("aten._to_copy.default", value, type=replace(type_, dtype=dtype), dtype=dtype)

    def spread(self, value: Value) -> Value:
        """(channels) as (channels, 1, ...), which broadcasts against the images."""
        type_ = from_mlir(value.type)
        ones = (1,) * (len(self.image.shape) - 2)
        extents = None if type_.extents is None else (*type_.extents, *ones)
        shaped = replace(type_, shape=(*type_.shape, *ones), extents=extents)
        return self.emitter.op("aten.reshape.default", value, list(shaped.shape), type=shaped)

    def total(self, value: Value) -> Value:
        """The sum over all but the channels, on all ranks."""
        local = self.each("aten.sum.dim_IntList", value, self.dims, False)
        return self.emitter.like(ALL_REDUCE, local, list(self.shards.axes), "sum")

    def mean(self, value: Value) -> Value:
        """The mean over all but the channels, on all ranks."""
        return self.each("aten.div.Scalar", self.total(value), float(self.count))

    def masked(self, value: Value) -> Value:
        """The value with zeros for the images that pad an uneven share."""
        shards = self.shards
        if shards.extent == shards.chunk * self.emitter.size(shards.axes):
            return value
        axes = list(shards.axes)
        return self.emitter.like("comm.mask", value, axes, shards.dim, shards.chunk, shards.extent, 0.0)


def _forward(emitter: LocalEmitter, call: Call, shards: Shards, types: Types) -> list[Value | None]:
    given = _named(call)
    image, statistic = types[0], types[1]
    assert image is not None and statistic is not None
    on = _Images(emitter, shards, image, statistic)
    x = on.cast(given["input"], on.image.dtype)
    mean = on.mean(x)
    centred = on.wide("aten.sub.Tensor", x, on.spread(mean))
    kept = on.masked(centred)
    variance = on.mean(on.wide("aten.mul.Tensor", kept, kept))
    deviation = on.each("aten.rsqrt.default", on.each("aten.add.Scalar", variance, given["eps"]))
    y = on.wide("aten.mul.Tensor", centred, on.spread(_times(on, deviation, given["weight"])))
    if given["bias"] is not None:
        y = on.wide("aten.add.Tensor", y, on.spread(on.cast(given["bias"], on.image.dtype)))
    results: list[Value | None] = [on.cast(y, image.dtype), mean, deviation]
    if len(types) > 3:
        unbiased = on.each("aten.mul.Scalar", variance, on.count / max(1, on.count - 1))
        results.append(_updated(on, given["running_mean"], mean, given["momentum"]))
        results.append(_updated(on, given["running_var"], unbiased, given["momentum"]))
    return results


def _updated(on: _Images, old: Value, new: Value, momentum: float) -> Value:
    """(1 - momentum) * old + momentum * new."""
    kept = on.emitter.like("aten.mul.Scalar", old, 1.0 - momentum)
    added = on.cast(on.each("aten.mul.Scalar", new, momentum), from_mlir(old.type).dtype)
    return on.emitter.like("aten.add.Tensor", kept, added)


def _times(on: _Images, value: Value, weight: Value | None) -> Value:
    return value if weight is None else on.each("aten.mul.Tensor", value, on.cast(weight, on.statistic.dtype))


def _backward(emitter: LocalEmitter, call: Call, shards: Shards, types: Types) -> list[Value | None]:
    given = _named(call)
    mean, deviation, weight = given["save_mean"], given["save_invstd"], given["weight"]
    image = from_mlir(given["input"].type)
    on = _Images(emitter, shards, image, from_mlir(mean.type))
    dy, x = on.cast(given["grad_out"], on.image.dtype), on.cast(given["input"], on.image.dtype)
    normal = on.wide("aten.mul.Tensor", on.wide("aten.sub.Tensor", x, on.spread(mean)), on.spread(deviation))
    dbias = on.total(dy)
    dweight = on.total(on.wide("aten.mul.Tensor", dy, normal))
    along = on.spread(on.each("aten.div.Scalar", dweight, float(on.count)))
    level = on.spread(on.each("aten.div.Scalar", dbias, float(on.count)))
    rest = on.wide("aten.sub.Tensor", on.wide("aten.sub.Tensor", dy, level), on.wide("aten.mul.Tensor", normal, along))
    dx = on.wide("aten.mul.Tensor", rest, on.spread(_times(on, deviation, weight)))
    found = (dx, dweight, dbias)
    return [None if type_ is None else on.cast(v, type_.dtype) for v, type_ in zip(found, types, strict=True)]


def _named(call: Call) -> dict[str, Any]:
    """The arguments by the schema's names; None for those left out."""
    names = [argument.name for argument in definitions()[call.name].arguments]
    return {name: call.args[i] if i < len(call.args) else None for i, name in enumerate(names)}


LOWERINGS: dict[str, Callable[[LocalEmitter, Call, Shards, Types], list[Value | None]]] = {
    "aten.native_batch_norm.default": _forward,
    "aten._native_batch_norm_legit.no_stats": _forward,
    "aten._native_batch_norm_legit_functional.default": _forward,
    "aten.native_batch_norm_backward.default": _backward,
}
"""What a rank computes in place of each op whose statistics are reduced inside it."""
