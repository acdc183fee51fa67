"""Batch norm over a sharded batch: sums are all-reduced over the axis, so statistics are those of the global batch.

Forward reduces the sum, then the sum of squared distances from the mean; backward reduces the sum of the gradient, and
that of its product with the normalised input. Each time one number per channel is communicated, never an image.

Source: Ioffe and Szegedy, "Batch normalization" (arXiv:1502.03167); running statistics as torch keeps them, with the
unbiased variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from math import prod
from typing import Any

import torch

from ...ir.bindings import Value
from ...ir.collectives import ALL_REDUCE
from ...ir.dialects.schemas import definitions
from ...ir.operations import Call
from ...ir.types import TensorType, from_mlir
from .emitter import LocalEmitter, Shards, Types


class _Images:
    """The images of one call: (batch, channels, *space), with one or several dims other than channels sharded."""

    def __init__(self, emitter: LocalEmitter, cuts: Sequence[Shards], image: TensorType, statistic: TensorType) -> None:
        self.emitter = emitter
        self.cuts = cuts
        self.image = replace(image, dtype=statistic.dtype)
        self.statistic = replace(statistic, shape=(image.shape[1],))
        self.dims = [d for d in range(len(image.shape)) if d != 1]
        extents = {cut.dim: cut.extent for cut in cuts}
        self.count = prod(extents.get(d, image.shape[d]) for d in self.dims)
        """Elements per channel, on all ranks together."""

    def per_element(self, name: str, *args: Any) -> Value:
        """An operation whose result has the images' shape."""
        return self.emitter.op(name, *args, type=self.image)

    def per_channel(self, name: str, *args: Any) -> Value:
        """An operation whose result has one element per channel."""
        return self.emitter.op(name, *args, type=self.statistic)

    def cast(self, value: Value, dtype: Any) -> Value:
        """The value in another dtype."""
        type_ = from_mlir(value.type)
        if type_.dtype == dtype:
            return value
        return self.emitter.op("aten._to_copy.default", value, type=replace(type_, dtype=dtype), dtype=dtype)

    def broadcastable(self, value: Value) -> Value:
        """(channels) as (channels, 1, ...), which broadcasts against the images."""
        type_ = from_mlir(value.type)
        ones = (1,) * (len(self.image.shape) - 2)
        extents = None if type_.extents is None else (*type_.extents, *ones)
        shaped = replace(type_, shape=(*type_.shape, *ones), extents=extents)
        return self.emitter.op("aten.reshape.default", value, list(shaped.shape), type=shaped)

    def total(self, value: Value) -> Value:
        """The sum over all but the channels, on all ranks."""
        local = self.per_channel("aten.sum.dim_IntList", value, self.dims, False)
        return self.emitter.like(ALL_REDUCE, local, [axis for cut in self.cuts for axis in cut.axes], "sum")

    def mean(self, value: Value) -> Value:
        """The mean over all but the channels, on all ranks."""
        return self.per_channel("aten.div.Scalar", self.total(value), float(self.count))

    def masked(self, value: Value) -> Value:
        """The value with the padding of uneven shards set to zero."""
        for cut in self.cuts:
            if cut.extent != cut.chunk * self.emitter.size(cut.axes):
                value = self.emitter.like("comm.mask", value, list(cut.axes), cut.dim, cut.chunk, cut.extent, 0.0)
        return value


def _forward(emitter: LocalEmitter, call: Call, cuts: Sequence[Shards], types: Types) -> list[Value | None]:
    arguments = _arguments(call)
    image, statistic = types[0], types[1]
    assert image is not None and statistic is not None
    kept = [arguments[name] for name in ("weight", "bias", "running_mean") if arguments.get(name) is not None]
    images = _Images(emitter, cuts, image, _wide(statistic, [from_mlir(value.type) for value in kept]))
    x = images.cast(arguments["input"], images.image.dtype)
    mean = images.mean(x)
    centred = images.per_element("aten.sub.Tensor", x, images.broadcastable(mean))
    masked = images.masked(centred)
    variance = images.mean(images.per_element("aten.mul.Tensor", masked, masked))
    deviation = images.per_channel(
        "aten.rsqrt.default", images.per_channel("aten.add.Scalar", variance, arguments["eps"])
    )
    y = images.per_element(
        "aten.mul.Tensor", centred, images.broadcastable(_scaled_by_weight(images, deviation, arguments["weight"]))
    )
    if arguments["bias"] is not None:
        y = images.per_element(
            "aten.add.Tensor", y, images.broadcastable(images.cast(arguments["bias"], images.image.dtype))
        )
    saved = [None if t is None else images.cast(v, t.dtype) for v, t in zip((mean, deviation), types[1:3], strict=True)]
    results: list[Value | None] = [images.cast(y, image.dtype), *saved]
    if len(types) > 3:
        unbiased = images.per_channel("aten.mul.Scalar", variance, images.count / max(1, images.count - 1))
        results.append(_updated(images, arguments["running_mean"], mean, arguments["momentum"]))
        results.append(_updated(images, arguments["running_var"], unbiased, arguments["momentum"]))
    return results


def _wide(statistic: TensorType, kept: Sequence[TensorType]) -> TensorType:
    """A statistic in the widest dtype of the parameters and running statistics, or float32, in which torch computes it.

    The type that torch saves it in may be that of short images. Sums over ranks must not have that.
    """
    return replace(statistic, dtype=reduce(torch.promote_types, (t.dtype for t in kept), _least(statistic)))


def _least(statistic: TensorType) -> torch.dtype:
    return torch.promote_types(statistic.dtype, torch.float32)


def _updated(images: _Images, old: Value, new: Value, momentum: float) -> Value:
    """(1 - momentum) * old + momentum * new."""
    old_share = images.emitter.like("aten.mul.Scalar", old, 1.0 - momentum)
    new_share = images.cast(images.per_channel("aten.mul.Scalar", new, momentum), from_mlir(old.type).dtype)
    return images.emitter.like("aten.add.Tensor", old_share, new_share)


def _scaled_by_weight(images: _Images, value: Value, weight: Value | None) -> Value:
    return (
        value
        if weight is None
        else images.per_channel("aten.mul.Tensor", value, images.cast(weight, images.statistic.dtype))
    )


def _backward(emitter: LocalEmitter, call: Call, cuts: Sequence[Shards], types: Types) -> list[Value | None]:
    arguments = _arguments(call)
    weight, image = arguments["weight"], from_mlir(arguments["input"].type)
    statistic = _wide(from_mlir(arguments["save_mean"].type), [t for t in types[1:] if t is not None])
    images = _Images(emitter, cuts, image, statistic)
    mean, deviation = (images.cast(arguments[name], statistic.dtype) for name in ("save_mean", "save_invstd"))
    dy, x = images.cast(arguments["grad_out"], images.image.dtype), images.cast(arguments["input"], images.image.dtype)
    normal = images.per_element(
        "aten.mul.Tensor",
        images.per_element("aten.sub.Tensor", x, images.broadcastable(mean)),
        images.broadcastable(deviation),
    )
    dbias = images.total(dy)
    dweight = images.total(images.per_element("aten.mul.Tensor", dy, normal))
    projected = images.broadcastable(images.per_channel("aten.div.Scalar", dweight, float(images.count)))
    mean_gradient = images.broadcastable(images.per_channel("aten.div.Scalar", dbias, float(images.count)))
    centred = images.per_element(
        "aten.sub.Tensor",
        images.per_element("aten.sub.Tensor", dy, mean_gradient),
        images.per_element("aten.mul.Tensor", normal, projected),
    )
    dx = images.per_element(
        "aten.mul.Tensor", centred, images.broadcastable(_scaled_by_weight(images, deviation, weight))
    )
    gradients = (dx, dweight, dbias)
    return [None if type_ is None else images.cast(v, type_.dtype) for v, type_ in zip(gradients, types, strict=True)]


def _arguments(call: Call) -> dict[str, Any]:
    """The arguments by the schema's names; None for omitted ones."""
    names = [argument.name for argument in definitions()[call.name].arguments]
    return {name: call.args[i] if i < len(call.args) else None for i, name in enumerate(names)}


LOWERINGS: dict[str, Callable[[LocalEmitter, Call, Sequence[Shards], Types], list[Value | None]]] = {
    "aten.native_batch_norm.default": _forward,
    "aten._native_batch_norm_legit.no_stats": _forward,
    "aten._native_batch_norm_legit_functional.default": _forward,
    "aten.native_batch_norm_backward.default": _backward,
}
"""The local computation of each op that reduces statistics inside."""
